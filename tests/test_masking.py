"""Passwords are masked in all forms of addresses, and in all output."""

from __future__ import annotations

import logging

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from shopee_mlflow.console import fail, say, show_log_messages
from shopee_mlflow.errors import ConfigError, ShopeeError
from shopee_mlflow.masking import mask_passwords
from shopee_mlflow.tracking.runs import open_run

ADDRESS = "http://ann:S3CRET@127.0.0.1:5999"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:S3CRET@host/name", "postgresql://user:***@host/name"),
        (
            "postgresql+psycopg2://user:se:S3@CRET@host:1/n",
            "postgresql+psycopg2://user:***@host:1/n",
        ),
        ("postgresql://user:S3CRET@host:nowhere/n", "postgresql://user:***@host:nowhere/n"),
        ("postgresql://ann:pa/S3CRET@h/o", "postgresql://ann:***@h/o"),
        ("postgresql://ann:p?S3CRET@h/o", "postgresql://ann:***@h/o"),
        ("postgresql://ann:S3CRET%40x@h/o", "postgresql://ann:***@h/o"),
        ("postgresql://ann:p S3CRET@h/o", "postgresql://ann:***@h/o"),
        ("postgresql://ann:it's S3@CRET@h/o is away", "postgresql://ann:***@h/o is away"),
        ('{"uri": "mysql://ann:a"S3CRET@h/o"}', '{"uri": "mysql://ann:***@h/o"}'),
        ("mysql://ann:p<S3CRET@h/o", "mysql://ann:***@h/o"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BPWD%3DS3CRET%3BUID%3Dann",
            "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BPWD%3D***%3BUID%3Dann",
        ),
        ("redis://:S3CRET@h/0", "redis://:***@h/0"),
        ("http://ann%3AS3CRET@h", "http://ann%3A***@h"),
        ("https%3A%2F%2Fann%3AS3CRET%40h%2Fx", "https%3A%2F%2Fann%3A***%40h%2Fx"),
        ("HTTPS://ann:S3CRET@h", "HTTPS://ann:***@h"),
        ("https://S3CRET@github.com/a/b", "https://***@github.com/a/b"),
        ("git+https://S3CRET@host/r.git", "git+https://***@host/r.git"),
        ("postgresql://h/o?user=ann&password=S3CRET", "postgresql://h/o?user=ann&password=***"),
        ("postgresql://h/o?p%61ssword=S3CRET&x=1", "postgresql://h/o?p%61ssword=***&x=1"),
        ("http://h/x?token=S3CRET", "http://h/x?token=***"),
        ("https://h/b?sv=1&sig=S3CRET&se=2", "https://h/b?sv=1&sig=***&se=2"),
        ("https://b.s3/x?X-Amz-Signature=S3CRET", "https://b.s3/x?X-Amz-Signature=***"),
        ("host=h user=ann password='S3 CRET' port=1", "host=h user=ann password='***' port=1"),
        ("AWS_SECRET_ACCESS_KEY=S3CRET", "AWS_SECRET_ACCESS_KEY=***"),
        ("{'host': 'h', 'password': 'S3CRET'}", "{'host': 'h', 'password': '***'}"),
        ("Authorization: Bearer S3CRET", "Authorization: Bearer ***"),
        (
            f"two: {ADDRESS} and postgresql://b:S3CRET@h.",
            "two: http://ann:***@127.0.0.1:5999 and postgresql://b:***@h.",
        ),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert mask_passwords(text) == shown
    assert mask_passwords(shown) == shown


@pytest.mark.fault
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ann:S3CRET@host", "ann:***@host"),
        ("is ann:p@S3CRET@10.0.0.1:5432/db away?", "is ann:***@10.0.0.1:5432/db away?"),
        ("//ann:S3CRET@[::1]:5000/x", "//ann:***@[::1]:5000/x"),
        ("postgresql:/ann:S3CRET@h/o", "postgresql:/ann:***@h/o"),
        ("MLFLOW_TRACKING_TOKEN: S3CRET", "MLFLOW_TRACKING_TOKEN: ***"),
        ("X-Api-Key: S3CRET\nHost: h", "X-Api-Key: ***\nHost: h"),
        ("user: ann\n  password: S3CRET\n", "user: ann\n  password: ***\n"),
        ("mlflow server --password S3CRET --port 5", "mlflow server --password *** --port 5"),
        ("Bearer S3CRET", "Bearer ***"),
        ("Set-Cookie: session=S3CRET; a=S3CRET", "Set-Cookie: ***"),
        ("token hf_S3CRETS3CRETS3CRETS3CRET!", "token ***!"),
        ("ghp_S3CRETS3CRETS3CRETS3CRETS3CR", "***"),
        ("dapi0123456789abcdef0123456789abcdef", "***"),
        ("glpat-S3CRETS3CRETS3CRET", "***"),
        ("xoxb-1234-S3CRETS3CRET", "***"),
        ("mysql -u ann -pS3CRET shop", "mysql -u ann -p*** shop"),
        ("mysqldump -uann -p'S3 CRET' shop", "mysqldump -uann -p'***' shop"),
        ("sshpass -p S3CRET ssh h", "sshpass -p *** ssh h"),
        ("redis-cli -h h -a S3CRET ping", "redis-cli -h h -a *** ping"),
        ("curl -u ann:S3CRET https://h/x", "curl -u ann:*** https://h/x"),
        ("curl -s --user 'ann:S3CRET' https://h", "curl -s --user 'ann:***' https://h"),
        ("curl -u 'ann:my S3CRET' https://h", "curl -u 'ann:***' https://h"),
        ("password='S3CRET\\'", "password='***'"),
        (
            "environ['MLFLOW_TRACKING_PASSWORD'] = 'S3CRET'",
            "environ['MLFLOW_TRACKING_PASSWORD'] = '***'",
        ),
        ("{'password': u'S3CRET', 'a': 1}", "{'password': u'***', 'a': 1}"),
        ("password='S3CRET\\'S3CRET' x", "password='***' x"),
        ("password => 'S3CRET'", "password => '***'"),
        ("Password : S3CRET", "Password : ***"),
        ("auth=('ann', 'S3CRET')", "auth=('ann', '***')"),
        ('{"auth": ["ann", "S3CRET"]}', '{"auth": ["ann", "***"]}'),
        ("Authorization: Token S3CRET", "Authorization: Token ***"),
        ('Authorization: Digest username="x", response="S3CRET"', "Authorization: ***"),
        (
            "http://h/?u=http%3A%2F%2Fann%3AS3CRET%40h&v=1",
            "http://h/?u=http%3A%2F%2Fann%3A***%40h&v=1",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nS3CRET\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
        ),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.S3CRET_signature", "***"),
    ],
)
def test_secrets_without_an_address_are_masked(text: str, shown: str) -> None:
    assert mask_passwords(text) == shown
    assert mask_passwords(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "python:3.11@sha256:0123",
        "mailto:ann@example.com",
        "git@github.com:a/b.git",
        "invalid token: unexpected end",
        "see hf_hub and ghp_pages",
        "curl -u is the option; mysql -p asks for it",
        "auth failed for ('ann', 'host')",
        "sk-learn and risk-adjusted-returns-2024",
        "train_images/sk-ii-facial-treatment-essence-230ml.jpg: cannot be read",
        "xoxo-valentine-gift-box-2024.jpg",
        "npm_product_photos_of_2024_v2.csv",
        "label group 3: sent to ann@example.com",
        "postgresql://user@host/name",
        "sqlite:////home/ann/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "models:/shopee-classifier@champion",
        "http://127.0.0.1:5000 is away; ask ann@example.com",
        "{'uri': 'http://h:5000', 'mail': 'ann@example.com'}",
        "http://h: is away; ask ann@example.com",
        "http://[::1]:5000/ is away; ask ann@example.com",
        "runs:/0123456789abcdef/model",
        "s3://bucket/path@v1/file",
        "/home/a@b:c/mine.journal",
        "batch_size=32: must be at least 1",
        "wrong password: access denied",
        "lr=0.1, token_count=3",
        "auto",
    ],
)
def test_other_texts_are_unchanged(text: str) -> None:
    assert mask_passwords(text) == text


def test_nothing_that_is_printed_holds_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    show_log_messages()
    say(f"store {ADDRESS}")
    fail(f"store {ADDRESS}")
    logging.getLogger("shopee_mlflow.tracking").warning("store %s", ADDRESS)
    out, err = capsys.readouterr()
    assert "S3CRET" not in out + err
    assert out.count("ann:***@") == 1
    assert err.count("ann:***@") == 2


def test_errors_hold_no_password() -> None:
    assert "S3CRET" not in str(ShopeeError(ADDRESS))
    error = ConfigError([f"storage={ADDRESS}"])
    assert "S3CRET" not in str(error)
    assert error.problems == ["storage=http://ann:***@127.0.0.1:5999"]


@pytest.mark.fault
@pytest.mark.parametrize(
    "error", [ValueError(ADDRESS), MlflowException(ADDRESS), ShopeeError(ADDRESS)]
)
def test_a_run_holds_no_password(error: Exception) -> None:
    runs: list[str] = []

    def fail_in_run() -> None:
        with open_run("fails") as log:
            runs.append(log.run_id)
            log.log_params({"storage": "postgresql://h/o?password=S3CRET", "lr": "0.1"})
            log.log_tags({"where": ADDRESS})
            raise error

    with pytest.raises((ValueError, ShopeeError)):
        fail_in_run()
    data = mlflow.get_run(runs[0]).data
    assert "S3CRET" not in f"{data.params} {data.tags}"
    assert "ann:***@127.0.0.1" in data.tags["failure"]
    assert data.params["lr"] == "0.1"
