"""What is shown: figures and pages made of plain results."""
