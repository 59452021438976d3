"""Draw a product of the sample catalogue with Pillow.

All sizes are relative, so a product has full detail at any size, up to 4096 pixels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .designs import SHAPES, Design

Colour = tuple[int, int, int]
Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours; ``share`` (0 to 1) is the weight of ``second``."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def smooth(points: list[Point], closed: bool = True) -> list[Point]:
    """Round an outline by cutting its corners three times (Chaikin's algorithm)."""
    for _ in range(3):
        following = points[1:] + points[:1] if closed else points[1:]
        cut = []
        for (ax, ay), (bx, by) in zip(points, following, strict=False):
            cut.append((0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by))
            cut.append((0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by))
        points = cut if closed else [points[0], *cut, points[-1]]
    return points


def draw_thick(draw: ImageDraw.ImageDraw, points: list[Point], width: int, fill: Colour) -> None:
    """Draw a line with round joints and round ends; points and width in pixels."""
    draw.line(points, fill, width, joint="curve")
    for x, y in (points[0], points[-1]):
        draw.circle((x, y), width / 2, fill)


def fitted_font(text: str, width: float, height: float) -> Font:
    """Pillow's default font in the largest size at which ``text`` fits into a box, in pixels."""
    probe = ImageFont.load_default(100)
    left, top, right, bottom = probe.getbbox(text)
    size = 100 * min(width / max(right - left, 1), height / max(bottom - top, 1))
    return ImageFont.load_default(max(size, 4))


def _roles(design: Design) -> dict[str, Colour]:
    body, accent, paper = (
        ImageColor.getrgb(name)[:3] for name in (design.body, design.accent, design.paper)
    )
    return {
        "body": body,
        "dark": mixed(body, (20, 16, 26), 0.30),
        "light": mixed(body, (255, 255, 255), 0.40),
        "accent": accent,
        "deep": mixed(accent, (20, 16, 26), 0.30),
        "paper": paper,
        "trim": (240, 238, 232),
        "metal": (196, 192, 186),
    }


def _pixels(percents: str, side: int) -> list[float]:
    return [float(value) * side / 100 for value in percents.split()]


def _draw_part(draw: ImageDraw.ImageDraw, part: str, roles: dict[str, Colour], side: int) -> None:
    kind, role, numbers = part.split(maxsplit=2)
    fill, (size, *xy) = roles[role], _pixels(numbers, side)
    points = list(zip(xy[::2], xy[1::2], strict=True))
    if kind == "box":
        draw.rounded_rectangle(xy, size, fill)
    elif kind == "oval":
        draw.ellipse(xy, fill)
    elif kind == "poly":
        draw.polygon(points, fill)
    elif kind == "curve":
        draw.polygon(smooth(points), fill)
    else:
        draw_thick(draw, smooth(points, closed=False), max(1, round(size)), fill)


def _all_over(draw: ImageDraw.ImageDraw, kind: str, width: int, height: int, ink: Colour) -> None:
    """Draw a pattern that fills the whole label."""
    step = min(width, height) / 5
    columns, rows = math.ceil(width / step) + 1, math.ceil(height / step) + 1
    if kind == "stripes":
        for row in range(rows):
            draw.rectangle((0, row * step, width, row * step + step * 0.45), ink)
    elif kind == "columns":
        for column in range(columns):
            draw.rectangle((column * step, 0, column * step + step * 0.45, height), ink)
    elif kind == "diagonal":
        for column in range(-rows, columns):
            start = column * step
            draw.line((start, height, start + height, 0), ink, max(1, round(step * 0.35)))
    elif kind == "waves":
        for row in range(rows):
            wave = [
                (x * step / 6, (row + 0.28 * math.sin(x * math.pi / 4)) * step)
                for x in range(6 * columns)
            ]
            draw.line(wave, ink, max(1, round(step * 0.30)))
    else:
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5 * (row % 2)) * step, row * step
                if kind == "dots":
                    draw.circle((x, y + step / 2), step * 0.27, ink)
                elif (row + column) % 2:
                    draw.rectangle((column * step, y, (column + 1) * step, y + step), ink)


def _motif(draw: ImageDraw.ImageDraw, kind: str, centre: Point, radius: float, ink: Colour) -> None:
    """Draw one emblem around ``centre``, in pixels."""
    x, y = centre
    if kind == "ring":
        draw.circle(centre, radius, outline=ink, width=max(1, round(radius * 0.28)))
        draw.circle(centre, radius * 0.40, ink)
    elif kind == "leaf":
        for sign in (-1, 1):
            tips = [(0, 1), (sign * 1.25, 0.5), (sign * 1.35, -1.1), (sign * 0.2, -0.4)]
            draw.polygon(smooth([(x + a * radius, y + b * radius) for a, b in tips]), ink)
    elif kind == "heart":
        tips = [(0, -0.35), (0.6, -1.25), (1.4, -0.6), (0.9, 0.4), (0, 1.1)]
        tips += [(-a, b) for a, b in tips[3:0:-1]]
        draw.polygon(smooth([(x + a * radius, y + b * radius) for a, b in tips]), ink)
    else:
        turns = [(math.pi * k / 5, radius * (0.45 if k % 2 else 1.1)) for k in range(10)]
        draw.polygon([(x + r * math.sin(t), y - r * math.cos(t)) for t, r in turns], ink)


def _label(design: Design, width: int, height: int, roles: dict[str, Colour]) -> Image.Image:
    """Draw the printed label, RGB: a word on a band over a pattern, or below an emblem."""
    paper, ink = roles["paper"], roles["accent"]
    label = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(label)
    middle = height * 0.5
    if design.pattern in ("ring", "leaf", "heart", "star"):
        radius = min(width, height) * 0.25
        _motif(draw, design.pattern, (width / 2, height * 0.38), radius, ink)
        middle = height * 0.82
    elif design.pattern != "plain":
        _all_over(draw, design.pattern, width, height, ink)
        draw.rectangle((0, height * 0.34, width, height * 0.66), paper)
    font = fitted_font(design.word, width * 0.76, height * 0.17)
    draw.text((width / 2, middle), design.word, roles["deep"], font, anchor="mm")
    return label


def _draw_camera(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.rounded_rectangle(_pixels("32 7 53 27", side), 0.05 * side, (38, 38, 44))
    for x, y in ((0.375, 0.125), (0.475, 0.17), (0.375, 0.215)):
        draw.circle((x * side, y * side), 0.036 * side, (90, 92, 104))
        draw.circle((x * side, y * side), 0.024 * side, (16, 18, 30))


def _draw_dial(draw: ImageDraw.ImageDraw, side: int, ink: Colour) -> None:
    middle = side / 2
    for hour in range(12):
        dx, dy = math.sin(hour * math.pi / 6), -math.cos(hour * math.pi / 6)
        inner, outer = (0.17 if hour % 3 else 0.155) * side, 0.195 * side
        ends = [(middle + dx * r, middle + dy * r) for r in (inner, outer)]
        draw.line(ends, ink, max(1, round(0.012 * side)))
    for x, y, width in ((0.42, 0.44, 0.02), (0.60, 0.40, 0.013)):
        draw_thick(draw, [(middle, middle), (x * side, y * side)], round(width * side) or 1, ink)


def _shaded(colours: Image.Image, alpha: Image.Image, is_round: bool) -> Image.Image:
    """Shade the product as if lit from the left, with a highlight and a dark side."""
    across = np.linspace(0, 1, 256, dtype=np.float32)
    gloss = (0.34 if is_round else 0.12) * np.exp(-(((across - 0.27) / 0.12) ** 2))
    shade = 0.45 * np.clip(across - 0.42, 0, 1) ** 1.3 + 0.5 * np.clip(0.16 - across, 0, 1)
    if not is_round:
        shade = 0.22 * across
    area = alpha.getbbox() or (0, 0, *alpha.size)
    size = (area[2] - area[0], area[3] - area[1])
    for tone, strength in (((255, 255, 255), gloss), ((18, 12, 30), shade)):
        row = Image.fromarray((strength * 255).astype(np.uint8)[None, :])
        colours.paste(tone, area, row.resize(size, Image.Resampling.BILINEAR))
    return colours


def draw_product(design: Design, side: int) -> Image.Image:
    """Draw the product upright on a transparent background, without margins at the sides.

    :param side: height of the picture in pixels.
    :returns: a picture of mode RGBa (premultiplied alpha), which can be resized and rotated without
        conversion.
    """
    shape, roles = SHAPES[design.shape], _roles(design)
    canvas = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(canvas)
    for part in shape.parts:
        _draw_part(draw, part, roles, side)
    alpha = canvas.getchannel("A")
    left, top, right, bottom = (round(value) for value in _pixels(shape.label, side))
    label = _label(design, right - left, bottom - top, roles)
    canvas.paste(label, (left, top), alpha.crop((left, top, right, bottom)))
    if design.shape == "case":
        _draw_camera(draw, side)
    elif design.shape == "watch":
        _draw_dial(draw, side, roles["deep"])
    product = _shaded(canvas.convert("RGB"), alpha, shape.is_round)
    product.putalpha(alpha)
    area = alpha.getbbox() or (0, 0, side, side)
    # Crop both sides equally, so that the product stays centred.
    margin = min(area[0], side - area[2])
    return product.crop((margin, 0, side - margin, side)).convert("RGBa")
