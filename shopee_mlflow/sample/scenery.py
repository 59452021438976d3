"""Draw the photos of the sample catalogue: products in varied scenes.

Background, pose, shadow, light and clutter are random. They depend only on a seed and have relative
sizes, so a photo shows the same scene at any size in pixels.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from .drawing import draw_thick, fitted_font, mixed, smooth

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
WALLS = ("#f6d9d5", "#d9e8f5", "#e3f0dc", "#f8eccb", "#e7dcf2", "#f3e3d3", "#d5ecea", "#e4e4e8")
WOODS = (("#8a5a33", "#c08a58"), ("#b98d62", "#e0bf97"), ("#5b4030", "#8a6a52"))
STONES = (("#c9c5bf", "#f1efec"), ("#5e6470", "#8b909a"), ("#b7a68f", "#e6dac8"))
LOUD = ("#e53935", "#f57c00", "#1e88e5", "#2e9e4f", "#8e24aa", "#f4b400")
BADGES = ("50% OFF", "PROMO", "DISKON", "SALE", "NEW", "COD", "BEST")
RIBBONS = ("READY STOCK", "BISA COD", "GRATIS ONGKIR", "ORIGINAL 100%", "KIRIM HARI INI")
MARKS = ("toko kami", "real pict", "olshop", "grosir murah")


def _noise(rng: random.Random, columns: int, rows: int, px: int) -> Image.Image:
    """Soft grey noise of ``columns`` x ``rows`` grains, stretched to ``px`` x ``px``: mode L."""
    generator = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
    grains = generator.integers(0, 256, (rows, columns), dtype=np.uint8)
    return Image.fromarray(grains).resize((px, px), BICUBIC)


def _ramp(px: int, angle: float) -> Image.Image:
    """A linear ramp from black to white at ``angle`` degrees: mode L."""
    ramp = Image.linear_gradient("L").rotate(angle, BILINEAR)
    return ramp.crop((48, 48, 208, 208)).resize((px, px), BICUBIC)


def _studio(px: int, rng: random.Random) -> Image.Image:
    floor = rng.uniform(0.62, 0.8)
    field = ImageOps.flip(Image.linear_gradient("L")).resize((px, px), BILINEAR)
    field.paste(200, (0, round(floor * px), px, px))
    soft = max(px // 8, 1)
    field = field.resize((soft, soft), BILINEAR).filter(ImageFilter.GaussianBlur(soft / 24))
    return ImageOps.colorize(field.resize((px, px), BICUBIC), "#dcdde2", "#ffffff")


def _gradient(px: int, rng: random.Random) -> Image.Image:
    first, second = rng.sample(WALLS, 2)
    return ImageOps.colorize(_ramp(px, rng.uniform(0, 360)), first, second)


def _paper(px: int, rng: random.Random) -> Image.Image:
    """A wall and a table of different colours; the horizon is slightly tilted."""
    wall, table = rng.sample(WALLS, 2)
    scene = ImageOps.colorize(_ramp(px, 90), wall, "#ffffff")
    horizon, lean = rng.uniform(0.55, 0.8) * px, rng.uniform(-0.05, 0.05) * px
    edge = [(0, horizon - lean), (px, horizon + lean), (px, px), (0, px)]
    ImageDraw.Draw(scene).polygon(edge, table)
    return scene


def _wood(px: int, rng: random.Random) -> Image.Image:
    dark, bright = rng.choice(WOODS)
    grain = Image.blend(_noise(rng, 3, 90, px), _noise(rng, 5, 300, px), 0.4)
    draw = ImageDraw.Draw(grain)
    planks = rng.randint(4, 7)
    tones = Image.fromarray(np.array([[rng.randrange(40, 230)] for _ in range(planks)], np.uint8))
    grain = Image.blend(grain, tones.resize((px, px), Image.Resampling.NEAREST), 0.6)
    draw = ImageDraw.Draw(grain)
    for plank in range(1, planks):
        draw.line((0, plank * px / planks, px, plank * px / planks), 0, max(1, px // 160))
    scene = ImageOps.colorize(grain, dark, bright)
    return scene.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.4 else scene


def _stone(px: int, rng: random.Random) -> Image.Image:
    """A mottled table top: noise of three grain sizes."""
    dark, bright = rng.choice(STONES)
    fine = Image.blend(_noise(rng, 40, 40, px), _noise(rng, 256, 256, px), 0.5)
    return ImageOps.colorize(Image.blend(_noise(rng, 7, 7, px), fine, 0.45), dark, bright)


BACKGROUNDS = (_studio, _studio, _gradient, _paper, _wood, _stone)


def _posed(product: Image.Image, side: float, width: float, turn: float) -> Image.Image:
    """The resized and rotated product.

    :param side: height in pixels before the rotation.
    :param width: factor of the width.
    :param turn: angle of the rotation in degrees.
    """
    width *= side * product.width / product.height
    size = (max(round(width), 1), max(round(side), 1))
    smaller = product.resize(size, Image.Resampling.HAMMING)
    return smaller.rotate(turn, BILINEAR, expand=True).convert("RGBA")


def _cast_shadow(
    scene: Image.Image, sprite: Image.Image, at: tuple[int, int], depth: float
) -> None:
    """A soft shadow of ``sprite``, ``depth`` pixels to the right and below it."""
    margin = round(depth * 3)
    alpha = ImageOps.expand(sprite.getchannel("A"), margin)
    # A blurred shadow has no detail, so it is drawn at an eighth of the size, which is faster.
    small = alpha.resize((max(alpha.width // 8, 2), max(alpha.height // 8, 2)), BILINEAR)
    small = small.filter(ImageFilter.GaussianBlur(max(depth / 8, 0.6))).point(lambda v: v * 0.5)
    corner = (at[0] - margin + round(depth * 0.8), at[1] - margin + round(depth))
    scene.paste((30, 24, 34), corner, small.resize(alpha.size, BICUBIC))


def _place(scene: Image.Image, sprite: Image.Image, centre: tuple[float, float]) -> None:
    """Paste ``sprite`` with its shadow; ``centre`` is a fraction of the scene's side."""
    px = scene.width
    corner = (round(centre[0] * px - sprite.width / 2), round(centre[1] * px - sprite.height / 2))
    _cast_shadow(scene, sprite, corner, 0.03 * px)
    scene.paste(sprite, corner, sprite)


def _light(scene: Image.Image, rng: random.Random) -> Image.Image:
    """Apply uneven light from one side, then brightness and a colour cast."""
    shade = _ramp(scene.width, rng.uniform(0, 360))
    floor = rng.uniform(0.62, 1.0)
    shade = shade.point([round(255 * (floor + (1 - floor) * v / 255)) for v in range(256)])
    scene = ImageChops.multiply(scene, Image.merge("RGB", (shade,) * 3))
    brightness, warmth, tint = rng.uniform(0.84, 1.16), rng.gauss(0, 0.06), rng.gauss(0, 0.025)
    gains = (brightness * (1 + warmth), brightness * (1 + tint), brightness * (1 - warmth))
    return scene.point([min(255, round(v * gain)) for gain in gains for v in range(256)])


def _badge(scene: Image.Image, rng: random.Random) -> None:
    """A round price badge in a corner."""
    side = round(rng.uniform(0.20, 0.30) * scene.width)
    badge = Image.new("RGBA", (2 * side, 2 * side))
    draw = ImageDraw.Draw(badge)
    draw.circle((side, side), side - 1, rng.choice(LOUD))
    draw.circle((side, side), side * 0.88, outline="white", width=max(1, side // 24))
    text = rng.choice(BADGES)
    font = fitted_font(text, side * 1.4, side * 0.55)
    draw.text((side, side), text, "white", font, anchor="mm")
    badge = badge.resize((side, side), BICUBIC).rotate(rng.uniform(-15, 15), BICUBIC)
    gap = round(0.03 * scene.width)
    far = scene.width - side - gap
    scene.paste(badge, (rng.choice((gap, far)), rng.choice((gap, gap, far))), badge)


def _ribbon(scene: Image.Image, rng: random.Random) -> None:
    """A coloured band with a seller's slogan along the top or the bottom."""
    px = scene.width
    height = round(rng.uniform(0.09, 0.13) * px)
    top = rng.choice((px - height, px - height, 0))
    text, draw = rng.choice(RIBBONS), ImageDraw.Draw(scene)
    draw.rectangle((0, top, px, top + height), rng.choice(LOUD))
    font = fitted_font(text, px * 0.8, height * 0.5)
    draw.text((px / 2, top + height / 2), text, "white", font, anchor="mm")


def _frame(scene: Image.Image, rng: random.Random) -> None:
    px, width = scene.width, round(rng.uniform(0.02, 0.04) * scene.width)
    draw = ImageDraw.Draw(scene)
    draw.rectangle((0, 0, px - 1, px - 1), outline=rng.choice(LOUD), width=max(width, 1))
    draw.rectangle((width, width, px - 1 - width, px - 1 - width), outline="white")


def _watermark(scene: Image.Image, rng: random.Random) -> None:
    px, text = scene.width, rng.choice(MARKS)
    mask = Image.new("L", (px, px))
    font = fitted_font(text, px * rng.uniform(0.4, 0.6), px * 0.12)
    at = (px / 2, px * rng.uniform(0.35, 0.75))
    ImageDraw.Draw(mask).text(at, text, 120, font, anchor="mm")
    scene.paste("white", (0, 0), mask.rotate(rng.uniform(-25, 25), BILINEAR))


def _hand(scene: Image.Image, rng: random.Random, at: tuple[float, float], reach: float) -> None:
    """Fingers that hold the product from the right.

    :param at: centre of the product, as fractions of the scene's side.
    :param reach: distance of the hand from the centre, as a fraction of the scene's side.
    """
    px = scene.width
    scale = 2 if px <= 512 else 1
    skin = mixed((244, 205, 178), (150, 100, 72), rng.random())
    layer = Image.new("RGBA", (px * scale, px * scale))
    draw, unit = ImageDraw.Draw(layer), px * scale
    left, top = at[0] + reach, at[1] + 0.02
    palm = [(left + 0.03, top - 0.07), (1.1, top), (1.2, top + 0.55), (left + 0.06, top + 0.34)]
    for finger in range(4):
        y = top + finger * 0.068
        tip = left - (0.05, 0.09, 0.085, 0.04)[finger]
        line: list[tuple[float, float]] = [
            (tip, y),
            (left + 0.08, y + 0.01),
            (left + 0.2, y + 0.05),
        ]
        pixels = [(x * unit, y * unit) for x, y in line]
        draw_thick(draw, pixels, round(0.067 * unit), mixed(skin, (90, 45, 35), 0.35))
        draw_thick(draw, pixels, round(0.058 * unit), skin)
        nail = [(tip - 0.022) * unit, (y - 0.017) * unit, (tip + 0.006) * unit, (y + 0.017) * unit]
        draw.rounded_rectangle(nail, 0.012 * unit, mixed(skin, (255, 225, 225), 0.6))
    draw.polygon(smooth([(x * unit, y * unit) for x, y in palm]), skin)
    layer = layer.resize((px, px), BICUBIC)
    scene.paste(layer, (0, 0), layer)


def _clutter(scene: Image.Image, rng: random.Random) -> None:
    for chance, add in ((0.14, _watermark), (0.10, _frame), (0.20, _ribbon), (0.24, _badge)):
        if rng.random() < chance:
            add(scene, rng)


def draw_photo(product: Image.Image, width: float, px: int, rng: random.Random) -> Image.Image:
    """Draw one photo of a product: RGB, ``px`` x ``px`` pixels.

    :param product: a picture from :func:`~.drawing.draw_product`.
    :param width: factor by which to stretch the product horizontally.
    :param rng: source of everything that is random.
    """
    scene = rng.choice(BACKGROUNDS)(px, rng)
    size, turn = rng.uniform(0.62, 0.92), rng.gauss(0, 6)
    centre = (0.5 + rng.gauss(0, 0.05), 0.5 + rng.gauss(0, 0.035))
    if rng.random() < 0.16:
        side = rng.choice((-1, 1))
        small = _posed(product, size * px * 0.6, width, rng.gauss(0, 8))
        _place(scene, small, (centre[0] + side * 0.27, centre[1] + size * 0.19))
        centre = (centre[0] - side * 0.10, centre[1])
    _place(scene, _posed(product, size * px, width, turn), centre)
    if rng.random() < 0.12:
        _hand(scene, rng, centre, 0.22 * size * width)
    scene = _light(scene, rng)
    if rng.random() < 0.25:
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.0015, 0.004) * px))
    _clutter(scene, rng)
    return scene
