"""Synthetic faces with CelebA's attributes: image i of a key is a pure function of (key, i), drawn on the device.

Factors are drawn first, scalars such as `smile` with uniform marginals, some of them correlated on purpose through a
Gaussian copula, as in CelebA, where who smiles has high cheekbones. A face is then painted from them back to front: a
layer is a colour and its opacity at every pixel, mostly a distance to the edge of a shape, negative inside, over which
the shape fades within a pixel and a half. Attributes are thresholds of factors: labels are exact, and an edit has a
truth to be compared with.

Coordinates are those of the head: x to the right, y down, a face about 0.88 wide and 1.17 high; the picture is 2 x 2.
"""

from functools import partial
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr
from jaxtyping import Float, Int, Int8, Key, UInt8, UInt32

from latentlab.parallel import batched_apply

SIZE = 128  # pixels
FACES_PER_CALL = 64  # faces that a device paints at a time
GLASSES_FROM, HAT_FROM = 0.68, 0.72

Scalar = Float[Array, ""]
Plane = Float[Array, "size size"]
Colour = Float[Array | np.ndarray, "3"]
Layers = list[tuple[Colour, Plane]]
Palette = tuple[str, ...]

SKIN: Palette = ("ffe6d8", "fbd6ba", "efbd95", "d39a6e", "a66f4e", "774d39")
HAIR: Palette = ("221d24", "2e2428", "583628", "865434", "d8a458", "f4d088", "a0a0a8", "d8d8de")
HAIR_KNOTS = (0.0, 0.27, 0.33, 0.55, 0.61, 0.79, 0.85, 1.0)  # plateaus, with the thresholds of attributes between
BACKDROP: Palette = ("96c6ce", "b6d4b2", "f7dca0", "f6bea4", "e0b2c8", "acb6e0")
CLOTH: Palette = ("36547c", "3c8684", "f0eee6", "f0b858", "e26e5c", "7e5894")
IRIS: Palette = ("4a2e22", "7c542c", "568056", "4e88ba", "788a9a")
LIPSTICK: Palette = ("de5470", "cc263a", "96204e")
FRAME: Palette = ("282832", "683e2a", "b2323a", "2e5082")
WHITE, DARK, ROSE = "fffdf8", "2c1a20", "ec6060"


class Factors(NamedTuple):
    """What a face is painted from: scalars, uniform on -1…1 where a sign is told and on 0…1 elsewhere."""

    smile: Array  # -1 corners of the mouth down … 1 up, with cheeks and lower lids
    mouth_opening: Array  # 0 closed … 1 wide open
    lipstick: Array  # 0 none … 1 full colour, a ramp about 0.55
    lipstick_hue: Array  # pink … red … berry
    lip_fullness: Array  # 0 thin … 1 full
    cheekbones: Array  # 0 flat … 1 high, lit above and shaded below
    rosiness: Array  # 0 … 1 rosy cheeks
    skin_tone: Array  # 0 pale … 1 dark
    face_shape: Array  # 0 round … 1 oval
    eye_openness: Array  # 0 narrow … 1 wide
    eye_hue: Array  # brown … green … blue … grey
    gaze: Array  # -1 left … 1 right of the picture
    brow_thickness: Array  # 0 thin … 1 bushy
    brow_arch: Array  # 0 straight … 1 arched
    nose_size: Array  # 0 small … 1 big
    hair_tone: Array  # black below 0.3, brown to 0.58, blond to 0.82, gray above
    hair_length: Array  # 0 ears … 1 below the shoulders
    bangs: Array  # 0 bare forehead … 1 fringe to the brows, a ramp about 0.62
    parting: Array  # -1 left … 1 right
    glasses: Array  # worn from 0.68
    glasses_hue: Array  # black, brown, red, blue
    hat: Array  # worn from 0.72
    hat_hue: Array  # along `CLOTH`
    clothes_hue: Array  # along `CLOTH`
    backdrop_hue: Array  # along `BACKDROP`
    light: Array  # -1 from the left … 1 from the right
    yaw: Array  # -1 features turned left … 1 right
    tilt: Array  # -1 head tilted left, by seven degrees … 1 right
    shift_x: Array  # -1 left … 1 right, by 4 pixels
    shift_y: Array  # -1 up … 1 down, by 3 pixels
    zoom: Array  # -1 farther … 1 nearer


# An attribute is +1 where least <= factor < below, else -1.
_RULES: tuple[tuple[str, str, float, float], ...] = (
    ("Smiling", "smile", 0.0, inf),
    ("Mouth_Slightly_Open", "mouth_opening", 0.5, inf),
    ("Wearing_Lipstick", "lipstick", 0.55, inf),
    ("Big_Lips", "lip_fullness", 0.65, inf),
    ("High_Cheekbones", "cheekbones", 0.55, inf),
    ("Rosy_Cheeks", "rosiness", 0.6, inf),
    ("Pale_Skin", "skin_tone", -inf, 0.22),
    ("Oval_Face", "face_shape", 0.55, inf),
    ("Narrow_Eyes", "eye_openness", -inf, 0.35),
    ("Bushy_Eyebrows", "brow_thickness", 0.6, inf),
    ("Arched_Eyebrows", "brow_arch", 0.6, inf),
    ("Big_Nose", "nose_size", 0.6, inf),
    ("Black_Hair", "hair_tone", -inf, 0.3),
    ("Brown_Hair", "hair_tone", 0.3, 0.58),
    ("Blond_Hair", "hair_tone", 0.58, 0.82),
    ("Gray_Hair", "hair_tone", 0.82, inf),
    ("Bangs", "bangs", 0.62, inf),
    ("Eyeglasses", "glasses", GLASSES_FROM, inf),
    ("Wearing_Hat", "hat", HAT_FROM, inf),
)
ATTRIBUTES: tuple[str, ...] = tuple(name for name, *_ in _RULES)
FACTOR_OF: dict[str, str] = {name: factor for name, factor, *_ in _RULES}

SIGNED = frozenset({"smile", "gaze", "parting", "light", "yaw", "tilt", "shift_x", "shift_y", "zoom"})
# Which factor follows which, and with what sign; none follows a follower.
FOLLOWS = {
    "cheekbones": ("smile", 1),
    "mouth_opening": ("smile", 1),
    "eye_openness": ("smile", -1),
    "rosiness": ("lipstick", 1),
    "hair_length": ("lipstick", 1),
    "brow_thickness": ("lipstick", -1),
    "hair_tone": ("skin_tone", -1),
}


def paint_faces(
    key: Key[Array, ""], indices: Int[np.ndarray, " n"], correlation: float = 0.6, size: int = SIZE
) -> tuple[UInt8[np.ndarray, "n size size 3"], Int8[np.ndarray, "n attributes"], Factors]:
    """Paint the images `indices` of a key, and return them with their attributes and factors.

    A factor is Φ(z), stretched to -1…1 if signed, with z standard normal. One that follows another has
    z = ±r z' + √(1 - r²) ε, with z' of the other and ε its own: the two z correlate by ±r and marginals stay as they
    are. Followers of `smile` are `cheekbones`, `mouth_opening` and, against it, `eye_openness`; of `lipstick`,
    `rosiness`, `hair_length` and, against it, `brow_thickness`; of `skin_tone`, against it, `hair_tone`.

    The same program paints them 64 at a time on each device, whatever n is, because another program rounds some values
    otherwise.

    Args:
        key: Typed key that stands for the whole data set; a face's own is `fold_in(key, index)`.
        indices: Which of its images, in any order. Each is the same to the bit whatever is drawn beside it.
        correlation: r, a plain number in -1…1; 0 makes all factors independent.
        size: Height and width in pixels.

    Returns:
        Images 0…255, attributes +1 or -1 in the order of `ATTRIBUTES`, and factors, each (n,).

    Raises:
        ValueError: `correlation` is not in -1…1.
    """
    factors = draw_factors(key, indices, correlation)
    images, attributes = batched_apply(
        _render_rows, *map(np.asarray, factors), batch_size=FACES_PER_CALL, static=(size,)
    )
    return images, attributes, factors


def draw_factors(key: Key[Array, ""], indices: Int[np.ndarray, " n"], correlation: float = 0.6) -> Factors:
    """Draw the factors of the images `indices` of a key, each (n,); see `paint_faces`."""
    factors: Factors = batched_apply(_draw_rows, indices, batch_size=FACES_PER_CALL, shared=key, static=(correlation,))
    return factors


def _draw_rows(correlation: float, key: Key[Array, ""], indices: Int[Array, " n"]) -> Factors:
    # In a loop, since erf rounds otherwise in the vectors of a batch than in what is left over from them; and one more
    # than asked, since XLA inlines a loop of one, fuses it with what follows, and rounds otherwise again.
    looped = jnp.concatenate([indices, indices[:1]])
    return Factors(*jax.lax.map(lambda index: _draw(key, index, correlation), looped)[: len(indices)].T)


def _render_rows(size: int, *factors: Array) -> tuple[Array, Array]:
    rows = Factors(*factors)
    return jax.vmap(partial(render, size=size))(rows), jax.vmap(attributes_of)(rows)


def _draw(key: Array, index: Array | int, correlation: float) -> Float[Array, " factors"]:
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}, expected a number in -1…1")
    names = Factors._fields
    followed, weight = np.arange(len(names)), np.zeros(len(names), np.float32)
    for follower, (name, sign) in FOLLOWS.items():
        followed[names.index(follower)], weight[names.index(follower)] = names.index(name), sign * correlation
    normals = jax.random.normal(jax.random.fold_in(key, index), (len(names),), jnp.float32)
    uniforms = ndtr(np.sqrt(1 - weight**2) * normals + weight * normals[followed])
    low = np.array([-1 if name in SIGNED else 0 for name in names], np.float32)
    return jnp.asarray(low) + (1 - low) * uniforms


def attributes_of(factors: Factors) -> Int8[Array, " attributes"]:
    """Return +1 or -1 for each of `ATTRIBUTES`, from the factors of one face."""
    values = [(getattr(factors, factor), least, below) for _, factor, least, below in _RULES]
    has = jnp.stack([(value >= least) & (value < below) for value, least, below in values])
    return jnp.where(has, jnp.int8(1), jnp.int8(-1))


def render(factors: Factors, size: int = SIZE) -> UInt8[Array, "size size 3"]:
    """Paint one face, pixels 0…255, from scalar factors in the ranges that `Factors` names."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = jnp.broadcast_to(axis[None, :], (size, size)), jnp.broadcast_to(axis[:, None], (size, size))
    scale, neck = 1 / (1.32 + 0.07 * factors.zoom), 0.6  # the head turns about the neck
    body = (x - 0.06 * factors.shift_x) * scale, (y - 0.04 * factors.shift_y - 0.1) * scale
    sine = 0.12 * factors.tilt
    cosine = 1 - 0.5 * sine * sine
    head = cosine * body[0] + sine * (body[1] - neck), cosine * (body[1] - neck) - sine * body[0] + neck
    features = head[0] - 0.06 * factors.yaw, head[1]
    look = _look(factors)
    pixels = _composite(
        size,
        [
            *_backdrop(factors, x, y),
            *_hair_behind(factors, look, *head),
            *_bust(factors, look, *body),
            *_face(factors, look, *head, features[0]),
            *_eyes(factors, look, *features),
            *_brows(factors, look, *features),
            *_nose(factors, look, *features),
            *_mouth(factors, look, *features),
            *_hair_in_front(factors, look, *head),
            *_glasses(factors, *features),
            *_hat(factors, *head),
        ],
    )
    return jax.lax.bitcast_convert_type(pixels, jnp.uint8)[..., :3]


class _Look(NamedTuple):
    """What several parts of a face share."""

    skin: Colour
    skin_shadow: Colour
    skin_light: Colour
    hair: Colour
    hair_shadow: Colour
    hair_light: Colour
    half_width: Scalar  # of the face
    smiling: Scalar  # the positive part of `smile`


def _look(factors: Factors) -> _Look:
    skin, hair = _along(SKIN, factors.skin_tone), _along(HAIR, factors.hair_tone, HAIR_KNOTS)
    return _Look(
        skin,
        skin * _rgb("cc9c92"),
        skin * (2 - skin),
        hair,
        hair * _rgb("b4a4ac"),
        _mix(hair, "fff0dc", 0.32),
        _between(0.46, 0.415, factors.face_shape),
        jnp.maximum(factors.smile, 0),
    )


def _backdrop(factors: Factors, x: Plane, y: Plane) -> Layers:
    colour = _along(BACKDROP, factors.backdrop_hue)
    return [
        (_mix(colour, WHITE, 0.25), jnp.ones_like(x)),
        (colour * _rgb("d8d4dc"), _smooth(-0.9, 1.4, y)),
        (_mix(colour, WHITE, 0.6), 0.6 * _glow(x, y + 0.15, 1.15, 1.15)),
    ]


def _hair_outline(factors: Factors, x: Plane, y: Plane) -> Plane:
    """Distance to all hair: a cap, and from the temples down a curtain as long as the hair."""
    width = _between(0.47, 0.54, _smooth(0, 0.4, factors.hair_length))
    curtain_width = width + 0.05 * _smooth(-0.08, 0.9, y)
    curtain = _rounded(jnp.abs(x) - curtain_width, y - _between(-0.06, 1.0, factors.hair_length), 0.2)
    return jnp.where(y < -0.08, _ellipse(x, y + 0.08, width, 0.61), curtain)


def _hair_behind(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    hair = _inside(_hair_outline(factors, x, y))
    return [(look.hair_shadow, hair), (look.hair_shadow * _rgb("b0a0a8"), hair * _glow(x, y - 0.6, 0.45, 0.6))]


def _bust(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    cloth, shirt = _along(CLOTH, factors.clothes_hue), _inside(_ellipse(x, y - 1.24, 0.92, 0.52))
    neck = jnp.maximum(_rounded(jnp.abs(x) - 0.2 - 0.08 * _smooth(0.6, 0.85, y), y - 0.86, 0.18), 0.2 - y)
    return [
        (cloth, shirt),
        (cloth * _rgb("b8b0c0"), shirt * _smooth(0.25, 0.9, jnp.abs(x))),
        (cloth * _rgb("c8c0d0"), shirt * _inside(neck - 0.045)),
        (look.skin, _inside(neck)),
        (look.skin_shadow, 0.75 * _inside(neck) * _smooth(0.84, 0.6, y)),
    ]


def _face(factors: Factors, look: _Look, x: Plane, y: Plane, feature_x: Plane) -> Layers:
    ear_x, ear_y = jnp.abs(x) - look.half_width - 0.01, y - 0.02
    across = x * (1 / look.half_width)
    down = y * jnp.where(y > 0, 1 / _between(0.57, 0.64, factors.face_shape), 1 / 0.56)
    jaw = jnp.clip(down, 0, 1)
    narrowed = across * (1 - _between(0.42, 0.0, factors.face_shape) * jaw * (1 - jaw))
    squared = narrowed * narrowed + down * down
    face = _inside((squared - 1) * (0.5 * look.half_width))
    from_light = 0.3 * down - factors.light * across
    return [
        (look.skin, _inside(_ellipse(ear_x, ear_y, 0.075, 0.125))),
        (look.skin_shadow, 0.6 * _glow(ear_x - 0.015, ear_y, 0.05, 0.1)),
        (look.skin, face),
        (look.skin_shadow, 0.55 * face * _smooth(0.25, 1.15, from_light) * jnp.clip(squared, 0, 1)),
        (look.skin_light, 0.4 * face * _smooth(0.2, 1.3, -from_light)),
        *((colour, face * opacity) for colour, opacity in _cheeks(factors, look, feature_x, y)),
    ]


def _cheeks(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    side, raised, bone = jnp.abs(x), y + 0.045 * factors.smile, factors.cheekbones
    blush = 0.1 + 0.8 * factors.rosiness
    return [
        (look.skin_shadow, 0.55 * bone * _glow(side - 0.36, y - 0.29, 0.14, 0.2)),
        (look.skin_light, 0.85 * bone * _glow(side - 0.29, y - 0.07, 0.15, 0.07)),
        (_mix(look.skin, ROSE, 0.5), blush * _glow(side - 0.27, raised - 0.19, 0.16, 0.13)),
        (look.skin_light, 0.55 * look.smiling * _glow(side - 0.265, raised - 0.16, 0.11, 0.08)),
    ]


def _eyes(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    width = 0.116
    along, outer = jnp.abs(x) - 0.19, jnp.where(x < 0, -1.0, 1.0)
    down = y + 0.03 + 0.04 * along
    opened = _between(0.38, 1.1, factors.eye_openness)
    upper, lower = 0.092 * opened, 0.062 * opened * (1 - 0.5 * look.smiling)
    ratio = along * (1 / width)
    arc = 1 - ratio * ratio
    lid = down + upper * arc
    eye = _inside(jnp.maximum(-lid, down - lower * arc))
    iris_x, iris_y = along - outer * 0.03 * factors.gaze, down + 0.01
    iris = _ellipse(iris_x, iris_y, 0.07, 0.07)
    glint = _ellipse(iris_x + 0.02 * outer, iris_y + 0.024, 0.019, 0.019)
    lash = _inside(jnp.abs(lid) - 0.014 - 0.006 * ratio) * _inside(jnp.abs(along) - width * 1.04)
    fold = _inside(jnp.abs(lid + 0.035) - 0.004) * _inside(jnp.abs(along) - width * 0.9)
    return [
        (look.skin_shadow, 0.35 * _glow(along, down, 0.17, 0.14)),
        (_rgb(WHITE), eye),
        (_along(IRIS, factors.eye_hue), eye * _inside(iris)),
        (_rgb(DARK), eye * _inside(iris + 0.03)),
        (_rgb(DARK), 0.3 * eye * jnp.clip(1 - lid * (1 / 0.06), 0, 1)),
        (_rgb(WHITE), eye * _inside(glint)),
        (look.skin_shadow, 0.8 * fold),
        (_rgb(DARK), lash),
    ]


def _brows(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    ratio = (jnp.abs(x) - 0.212) * (1 / 0.128)
    bend = ratio - 0.15
    middle = -0.2 - 0.045 * factors.brow_arch + 0.025 * ratio + (0.012 + 0.045 * factors.brow_arch) * bend * bend
    thick = _between(0.018, 0.05, factors.brow_thickness)
    profile = (y - middle) * (1 / thick) * (1 + 0.3 * ratio)
    brow = _inside((ratio * ratio + profile * profile - 1) * (0.5 * thick))
    return [(look.hair * _rgb("b09898"), 0.92 * brow)]


def _nose(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    size = _between(0.062, 0.125, factors.nose_size)
    x = x - 0.025 * factors.yaw
    ratio, down = x * (1 / size), y - 0.15
    base = down - 0.35 * size * (1 - ratio * ratio)
    rim = _inside(jnp.abs(base) - 0.011 * (1.2 - ratio * ratio)) * _inside(jnp.abs(x) - size)
    nostril = _inside(_ellipse(jnp.abs(x) - 0.45 * size, down - 0.2 * size, 0.3 * size, 0.17 * size))
    return [
        (look.skin_shadow, 0.4 * _glow(x + 0.05 * factors.light, y, 0.06, 0.26)),
        (look.skin_shadow, 0.55 * _glow(x, down, size * 1.5, size * 1.1)),
        (look.skin_light, 0.8 * _glow(x - 0.02 * factors.light, down + 0.45 * size, 0.6 * size, 0.7 * size)),
        (look.skin_shadow * _rgb("d0b0b0"), 0.7 * rim),
        (look.skin_shadow * _rgb("b09090"), 0.6 * nostril),
    ]


def _mouth(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    width, bend = 0.22 + 0.05 * factors.smile, 0.15 * factors.smile
    opened = 0.15 * factors.mouth_opening
    upper, lower = _between(0.022, 0.048, factors.lip_fullness), _between(0.03, 0.066, factors.lip_fullness)
    squared = jnp.minimum((x * (1 / width)) ** 2, 1)
    round_arc = 1 - squared * squared
    bow = 1 - squared - 0.3 * jnp.maximum(1 - 12 * squared, 0)
    down = y - 0.34 - bend * (0.45 - squared)  # from the lower edge of the upper lip
    within = _inside(jnp.abs(x) - width)
    lips = within * _inside(jnp.maximum(-down - upper * bow, down - (opened + lower) * round_arc))
    half_gap = 0.5 * opened * round_arc
    gap = within * _inside(jnp.abs(down - half_gap) - half_gap - 0.008)
    teeth = gap * _inside(down - 0.84 * half_gap) * _smooth(0.12, 0.35, factors.mouth_opening)
    tongue = gap * _inside(_ellipse(x, down - opened, 0.6 * width, 0.07)) * _smooth(0.3, 0.5, factors.mouth_opening)
    crease = _glow(jnp.abs(x) - width - 0.03, y - 0.34 + 0.55 * bend, 0.045, 0.1)
    gloss = 0.7 * lips * _glow(x, down - opened - 0.45 * lower, 0.5 * width, 0.5 * lower)
    bare = _mix(look.skin * _rgb("e0a8a0"), ROSE, 0.25)
    colour = bare + _smooth(0.42, 0.68, factors.lipstick) * (_along(LIPSTICK, factors.lipstick_hue) - bare)
    return [
        (look.skin_shadow, 0.5 * _glow(x, y - 0.5 - 0.4 * opened, 0.14, 0.05)),
        (look.skin_shadow, 0.75 * jnp.abs(factors.smile) * crease),
        (colour, lips),
        (_mix(colour, WHITE, 0.4), gloss),
        (_mix(colour * _rgb("804048"), DARK, 0.5), gap),
        (_rgb("e26a68"), 0.9 * tongue),
        (_rgb(WHITE), teeth),
    ]


def _hair_in_front(factors: Factors, look: _Look, x: Plane, y: Plane) -> Layers:
    outline = _hair_outline(factors, x, y)
    above = jnp.minimum(y - 0.12, 0)
    slanted = x + 0.3 * factors.parting * above
    opening = -_ellipse(slanted, above, look.half_width - 0.015, 0.51)
    scallops = 0.035 * (_wave(4.5 * x + factors.parting) + x * x)
    fringe = _between(-0.52, -0.2, _smooth(0.42, 0.82, factors.bangs)) + scallops
    edge = jnp.minimum(opening, jnp.maximum(y - fringe, jnp.abs(x) - 0.44))
    hair = _inside(jnp.maximum(outline, edge))
    shade = _inside(outline) * jnp.clip(1 - edge * (1 / 0.07), 0, 1) * _smooth(0.3, 0.0, y)
    band = (x * x + 0.75 * (y + 0.08) ** 2 - 0.17) * (1 / 0.09)
    lit = _smooth(0.55, -0.2, jnp.abs(x - 0.2 * factors.light)) * _smooth(0.0, -0.3, y)
    gloss = lit * jnp.maximum(1 - band * band, 0)
    strands = _wave(slanted * (5 - 5 * y)) * _smooth(0.5, -0.4, y)
    return [
        (look.skin_shadow, 0.6 * shade),
        (look.hair, hair),
        (look.hair_shadow, 0.28 * hair * jnp.clip(strands, 0, 1)),
        (look.hair_light, 0.8 * hair * gloss),
    ]


def _glasses(factors: Factors, x: Plane, y: Plane) -> Layers:
    worn = (factors.glasses >= GLASSES_FROM).astype(jnp.float32)
    along, down = jnp.abs(x) - 0.2, y + 0.02
    lens = _rounded(jnp.abs(along) - 0.15, jnp.abs(down) - 0.125, 0.1)
    bridge = jnp.maximum(jnp.abs(y + 0.045 - 0.8 * x * x) - 0.012, jnp.abs(x) - 0.06)
    temple = jnp.maximum(jnp.abs(y + 0.06) - 0.014, jnp.abs(jnp.abs(x) - 0.38) - 0.035)
    frame = _inside(jnp.minimum(jnp.abs(lens) - 0.017, jnp.minimum(bridge, temple)))
    glare = jnp.abs(along + 0.6 * down + 0.03) - 0.025
    return [
        (_rgb(WHITE), worn * _inside(lens) * (0.06 + 0.22 * _inside(glare))),
        (_along(FRAME, factors.glasses_hue), worn * frame),
    ]


def _hat(factors: Factors, x: Plane, y: Plane) -> Layers:
    worn = (factors.hat >= HAT_FROM).astype(jnp.float32)
    colour = _along(CLOTH, factors.hat_hue)
    middle = y + 0.43 - 0.18 * x * x
    cuff = _inside(_rounded(jnp.abs(x) - 0.57, jnp.abs(middle) - 0.09, 0.07))
    dome = _inside(jnp.maximum(_ellipse(x, y + 0.38, 0.55, 0.5), middle))
    lit = x - 0.3 * factors.light
    return [
        (_mix(colour, WHITE, 0.35), worn * _inside(_ellipse(x, y + 0.92, 0.13, 0.12))),
        (colour, worn * dome),
        (colour * _rgb("b0a8b8"), worn * dome * _smooth(0.1, 0.6, jnp.abs(lit))),
        (_mix(colour, WHITE, 0.2), worn * cuff),
        (colour * _rgb("c0b8c8"), 0.6 * worn * cuff * jnp.clip(_wave(7 * x), 0, 1)),
    ]


def _composite(size: int, layers: Layers) -> UInt32[Array, "size size"]:
    """Return pixels red + 256 green + 65536 blue: one value, or XLA would compute every mask once for each channel."""
    channels: list[Array] = [jnp.zeros((size, size), jnp.float32)] * 3
    for colour, opacity in layers:
        channels = [below + opacity * (colour[c] - below) for c, below in enumerate(channels)]
    red, green, blue = ((channel * 255 + 0.5).astype(jnp.uint32) for channel in channels)
    return red | (green << 8) | (blue << 16)


def _rgb(colour: str) -> Colour:
    return np.frombuffer(bytes.fromhex(colour), np.uint8).astype(np.float32) / np.float32(255)


def _along(palette: Palette, position: Scalar, knots: tuple[float, ...] = ()) -> Colour:
    """Return the colour at 0…1 along a palette, piecewise linear between knots, which are even where none are given."""
    colours = np.stack([_rgb(colour) for colour in palette])
    places = np.asarray(knots or np.linspace(0, 1, len(palette)), np.float32)
    passed = jnp.clip((position - places[:-1]) * (1 / np.diff(places)), 0, 1)
    return colours[0] + jnp.sum(passed[:, None] * np.diff(colours, axis=0), axis=0)


def _mix(colour: Colour, other: str, share: float) -> Colour:
    return colour + share * (_rgb(other) - colour)


def _between(low: float, high: float, position: Scalar) -> Scalar:
    return low + (high - low) * position


def _smooth(zero: float, one: float, value: Array) -> Array:
    """Smoothstep 3t² - 2t³ that is 0 at `zero` and 1 at `one`, whichever is greater."""
    t = jnp.clip((value - zero) * (1 / (one - zero)), 0, 1)
    return t * t * (3 - 2 * t)


def _wave(turns: Array) -> Array:
    """Parabolas that stand for sin(2π turns)."""
    t = turns - jnp.round(turns)
    return 8 * t * (1 - 2 * jnp.abs(t))


def _inside(distance: Plane) -> Plane:
    edge = distance.shape[-1] / 3  # opacity per unit of distance, 1.5 pixels from none to full
    return jnp.clip(0.5 - edge * distance, 0, 1)


def _ellipse(x: Plane, y: Plane, radius_x: Scalar | float, radius_y: Scalar | float) -> Plane:
    """Distance to the edge of an ellipse about the origin, to first order, and along its short axis."""
    x, y = x * (1 / radius_x), y * (1 / radius_y)
    return (x * x + y * y - 1) * (0.5 * jnp.minimum(radius_x, radius_y))


def _rounded(beyond_x: Plane, beyond_y: Plane, radius: float) -> Plane:
    """Distance to a box whose sides are at distances `beyond_x` and `beyond_y`, its corner rounded, to first order."""
    x, y = beyond_x + radius, beyond_y + radius
    corner_x, corner_y = jnp.maximum(x, 0), jnp.maximum(y, 0)
    outwards = (corner_x * corner_x + corner_y * corner_y) * (0.5 / radius)
    return outwards + jnp.minimum(jnp.maximum(x, y), 0) - 0.5 * radius


def _glow(x: Plane, y: Plane, radius_x: Scalar | float, radius_y: Scalar | float) -> Plane:
    """1 at the origin, softly down to 0 at the rim of an ellipse."""
    x, y = x * (1 / radius_x), y * (1 / radius_y)
    t = jnp.maximum(1 - x * x - y * y, 0)
    return t * t
