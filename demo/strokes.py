"""What a rendered face is made of: an identity, action units (its expression), and the strokes that show both.

`demo.faces` places the strokes on the canvas. All points are in pixels of 48 from mid-face, y down.
"""

from collections import namedtuple
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Action units (AU), 0 at rest and 1 full. Upper half: inner brow up (AU1), outer brow up (2), brows lowered and knit
# (4), upper lid raised (5), cheek raised (6), lids tight (7), nose wrinkled (9), lid drooping (43).
Upper = namedtuple("Upper", "inner outer knit wide cheek tight wrinkle droop")
# Mouth: corners up (12; negative: down, 15), lips parted and jaw dropped (25, 26), shape of that opening (0 a lens,
# 1 a box), upper lip raised (10), stretched (20; negative: rounded, 18), lips pressed (23, 24), upper and lower teeth
# visible, chin and lower lip pushed up (17), and how much weaker one side is than the other.
Mouth = namedtuple("Mouth", "lift open square sneer width press upper_teeth lower_teeth chin lopsided")

LINE, FOLD, BROAD = 0, 1, 2  # layers: sharp strokes, wrinkles and folds, broad shading

T = np.linspace(-1, 1, 17)  # along a feature, from one end to the other
BOW = 1 - T**2
_ANGLE = np.linspace(0, 2 * np.pi, 20)
CIRCLE = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], axis=1)
HEAD_COS, HEAD_SIN = np.cos(np.linspace(0, 2 * np.pi, 40)), np.sin(np.linspace(0, 2 * np.pi, 40))


class Identity:
    """What is the same in every picture of one person; lengths in pixels of 48, grey levels from 0 to 255."""

    def __init__(self, rng: np.random.Generator) -> None:
        u, n = rng.uniform, rng.normal
        woman = rng.random() < 0.5
        self.skin = u(75, 215)  # grey level
        dark_hair = self.skin < 130 or rng.random() < 0.7
        self.hair = min(u(15, 75), 0.5 * self.skin) if dark_hair else u(80, 200)
        self.hair_style = rng.choice(
            ("bald", "short", "long", "fringe"), p=(0.02, 0.18, 0.5, 0.3) if woman else (0.12, 0.73, 0.05, 0.1)
        )
        self.hairline, self.parting = u(-18.5, -14.5), u(-0.6, 0.6)
        self.head, self.top, self.chin = u(15.3, 18.2), u(22, 26), u(19, 22.5)  # half width, heights
        self.taper, self.jaw = u(0, 0.22), u(0.65, 1)  # narrower chin; jaw 1 is round, less is squarer
        self.eye_gap, self.eye_width = u(7.2, 8.8), u(3.3, 4.4)  # from the middle to the eye's; half width
        self.eye_open, self.eye_tilt, self.iris = u(1.5, 2.3), n(0.25, 0.3), u(0.12, 0.4) * self.skin
        self.brow_height, self.brow_tilt = u(-10.6, -8.8), n(0, 0.45)
        self.brow_thick = u(0.5, 0.9) if woman else u(0.8, 1.5)
        self.nose_length, self.nose_width = u(3.2, 5.2), u(2.5, 4.0)
        self.mouth_height, self.mouth_width = u(10.2, 11.6), u(5.6, 7.2)
        self.mouth_rest, self.lip = n(0, 0.3), u(0.6, 1.5)  # corners at rest, up is positive; thickness
        beards = ("none", "moustache", "full", "stubble")
        self.beard = "none" if woman else rng.choice(beards, p=(0.6, 0.1, 0.12, 0.18))
        self.glasses = rng.choice((0, 0.5, 1.1), p=(0.82, 0.1, 0.08))  # the rim's width; 0 is none
        self.age = u(0.2, 1.0) ** 1.5  # depth of the lines


class Stroke(NamedTuple):
    """A polygon, or a line where `width` is above 0; `points` is (n, 2), n at least 1."""

    points: np.ndarray
    tone: float  # grey level; in the layers FOLD and BROAD the change in percent
    width: float = 0.0
    depth: float = 1.0  # how far it moves when the head turns
    layer: int = LINE


def xy(x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float] | float) -> np.ndarray:
    points = np.empty((len(x), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def between(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The polygon between two curves over the same x."""
    return np.concatenate([xy(x, top), xy(x, bottom)[::-1]])


def outline(who: Identity, drop: float) -> np.ndarray:
    """The head's contour from one ear down round the chin and back over the top: (40, 2)."""
    lower = np.maximum(HEAD_SIN, 0)
    square = np.where(HEAD_SIN > 0, np.abs(HEAD_COS) ** who.jaw, np.abs(HEAD_COS)) * np.sign(HEAD_COS)
    x = who.head * square * (1 - who.taper * lower**2)
    return xy(x, HEAD_SIN * np.where(HEAD_SIN > 0, who.chin + drop * lower, who.top))


def head(who: Identity, drop: float) -> list[Stroke]:
    """Hair behind, neck, ears, head, hair in front. `drop`: how far the jaw has dropped, in pixels."""
    contour, lower, strokes = outline(who, drop), np.maximum(HEAD_SIN, 0), []
    if who.hair_style == "long":
        wave = 1 + 0.05 * np.sin(5 * HEAD_SIN + 6 * who.parting) + 0.06 * who.parting * HEAD_COS
        mane = xy(HEAD_COS * (who.head + 4.2) * wave, HEAD_SIN * 26 + 6 * lower)
        strokes.append(Stroke(mane, who.hair * 0.85, depth=-0.4))
    neck = xy([-9, 9, 10, 30, -30, -10], [10, 10, 23, 30, 30, 23])
    strokes.append(Stroke(neck, who.skin * 0.62, depth=0))
    if who.hair_style in ("bald", "short"):
        strokes += [Stroke(CIRCLE * (2, 4) + (s * who.head, -1), who.skin * 0.8, depth=0.3) for s in (-1, 1)]
    strokes.append(Stroke(contour, who.skin, depth=0.25))
    strokes.append(Stroke(contour, -30, 4, 0.25, BROAD))
    under = xy([-8, 0, 8], np.array([3, 4 + drop, 3]) + who.chin)
    strokes.append(Stroke(under, -35, 3, 0, BROAD))
    return strokes if who.hair_style == "bald" else strokes + hair(who)


def hair(who: Identity) -> list[Stroke]:
    """The hair in front of the head: hairline, parting, temples, locks."""
    long, fringe = who.hair_style == "long", who.hair_style == "fringe"
    low = who.hairline + (3.4 if fringe else 0)
    ragged = 0.55 * np.sin(15 * T + 9 * who.parting) + 0.35 * np.sin(31 * T)
    fall = (3 if fringe else 11) * (1 + who.parting * np.sign(T)) * np.abs(T) ** (2 if long else 3.2)
    bays = -1.8 * (not long and not fringe) * np.exp(-(((np.abs(T) - 0.6) / 0.2) ** 2))
    edge = low + fall + bays + ragged + (9 if long or fringe else 2) * np.abs(T) ** 12
    skull = -(who.top + 3) * np.sqrt(1 - (0.9 * T) ** 2)
    cap = between(T * (who.head + 0.9), skull, np.maximum(edge, skull + 1))
    strokes = [Stroke(cap, who.hair, depth=0.3)]
    for k, at in enumerate((-0.75, -0.5, -0.25, 0.05, 0.3, 0.5, 0.75)):
        lock = xy([at * who.head * 0.6 + 4 * who.parting, at * who.head], [-who.top - 1, low + 8 * at**2])
        strokes.append(Stroke(lock, 32 if k % 2 else -34, 1, 0.3, FOLD))
    for s, k in ((s, k) for s in (-1, 1) for k in (0, 1, 2) if long):
        strand = xy(s * (who.head + 0.5 + 1.8 * k) * np.array([0.98, 1.06, 1]), [-8, 6, 24])
        strokes.append(Stroke(strand, 25 if k % 2 else -28, 0.9, 0.1, FOLD))
    return strokes


def eye(who: Identity, up: Upper, side: int, gaze: np.ndarray) -> list[Stroke]:
    """Socket, lids, white, iris clipped by the lids. `side`: -1 left, 1 right."""
    x = side * (who.eye_gap + who.eye_width * T)
    y = -4.6 - who.eye_tilt * T + 0.35 * up.droop * T
    lid = who.eye_open * max(1 + 0.6 * up.wide - 0.3 * up.tight - 0.5 * up.droop - 0.15 * up.cheek, 0.12)
    floor = 0.5 * who.eye_open * (1 + 0.25 * up.wide - 1.5 * min(up.cheek, 1) - 0.7 * up.tight)
    top = y - lid * BOW**0.8 - 0.3 * up.inner * up.droop * (1 - T)
    bottom = np.maximum(y + floor * BOW, top + 0.25)
    pupil = np.array([side * who.eye_gap + gaze[0], -4.9 + gaze[1]])
    ball = CIRCLE * 1.9 + pupil
    roof, ground = (np.interp(ball[:, 0], x[::side], curve[::side]) for curve in (top, bottom))
    ball[:, 1] = np.clip(ball[:, 1], roof, np.maximum(ground, roof))
    glint = CIRCLE * 0.4 + (pupil[0] + 0.5, max(pupil[1] - 0.6, top.min() + 0.6))
    return [
        Stroke(CIRCLE * (5.6, 3.6) + (side * who.eye_gap * 0.9, -5.6), -22, layer=BROAD),
        Stroke(xy(x, top - 0.9 + 0.3 * T), -22, 0.8, layer=FOLD),
        Stroke(xy(x, bottom + 1.3 + 0.4 * up.cheek), -10 - 14 * up.cheek - 8 * who.age, 0.9, layer=FOLD),
        Stroke(between(x, top, bottom), min(0.45 * who.skin + 125, 228)),
        Stroke(ball, who.iris),
        Stroke(glint, 235),
        Stroke(xy(x, top), min(who.hair, 0.28 * who.skin), 0.75),
        Stroke(xy(x, bottom), who.skin * 0.62, 0.35),
    ]


def brow(who: Identity, up: Upper, side: int) -> Stroke:
    s = np.linspace(0, 1, 12)
    inner = who.brow_height - 2.6 * up.inner + 2.3 * up.knit + 0.7 * up.wrinkle + 0.5 * who.brow_tilt
    outer = who.brow_height - 2.3 * up.outer + 0.5 * up.knit - 0.5 * who.brow_tilt + 1.1
    arch = -1.5 - 0.6 * up.outer + 0.5 * up.knit
    start = 3.9 - 1.2 * up.knit
    x = side * (start + s * (who.eye_gap + who.eye_width + 0.7 - start))
    y = inner * (1 - s) + outer * s + arch * 4 * (s * (1 - s)) ** 1.2 * (0.6 + 0.5 * s)
    thick = who.brow_thick * (1.1 - 0.85 * s**1.5)
    return Stroke(between(x, y - thick, y + thick), 0.25 * who.skin + 0.6 * min(who.hair, 0.6 * who.skin))


def nose(who: Identity, up: Upper, light: float) -> list[Stroke]:
    """Nose and cheeks. `light`: -1 from the left, 1 from the right; the shadow falls on the other side."""
    tip, w = who.nose_length - 0.7 * min(up.wrinkle, 1), who.nose_width + 0.4 * up.wrinkle
    dark = -1 if light > 0 else 1
    strokes = [
        Stroke(xy([dark * 1.6, dark * 1.8, dark * w * 0.8], [-6, -1, tip]), -12 - 14 * abs(light), 2.5, 1.5, BROAD),
        Stroke(xy([0, -dark * 0.3], [-4, tip - 1]), 12, 1.4, 1.6, FOLD),
        Stroke(xy(w * 0.9 * T, tip + 1.1 - 0.3 * T**2), -24, 1, 1.5, FOLD),
    ]
    for s in (-1, 1):
        cheek = CIRCLE * (4.5, 3.5) + (s * 9.5, 3 - 0.8 * up.cheek)
        wing = xy(s * (w - np.array([0.4, 0, 0.5])), np.array([-1.4, -0.3, 0.6]) + tip)
        strokes += [
            Stroke(cheek, 10 + 12 * up.cheek, layer=BROAD),
            Stroke(CIRCLE * (0.8, 0.45) + (s * w * 0.5, tip + 0.5), who.skin * 0.38, depth=1.5),
            Stroke(wing, who.skin * 0.62, 0.5, 1.4),
        ]
    return strokes


def wrinkles(who: Identity, up: Upper) -> list[Stroke]:
    """Forehead (AU1, 2), between the brows (4), crow's feet (6), nose root (9)."""
    deep = 0.5 + 0.5 * who.age
    raised, corner = deep * 26 * max(0.5 * (up.inner + up.outer), 0), who.eye_gap + who.eye_width
    strokes = [
        Stroke(xy(9 * T, y - 0.8 * BOW * up.outer - 0.6 * up.inner), -raised, 0.7, layer=FOLD) for y in (-15.5, -13.7)
    ]
    for s in (-1, 1):
        strokes += [
            Stroke(xy([s * 1.3, s], [-10.5, -7]), -deep * 55 * max(up.knit, 0), 0.8, layer=FOLD),
            Stroke(xy([s * 0.6, s * 2.6, s * 3.4], [-4.6, -3.4, -2]), -deep * 55 * up.wrinkle, 0.7, 1.3, FOLD),
            Stroke(xy([s * 0.5, s * 2.4], [-2.6, -1.2]), -deep * 45 * up.wrinkle, 0.7, 1.4, FOLD),
        ]
        for dy in (-1, 0.8):
            foot = xy([s * (corner + 0.8), s * (corner + 2.8)], [-4.4 + 0.4 * dy, -4.2 + 1.5 * dy])
            strokes.append(Stroke(foot, -deep * 34 * up.cheek, 0.6, layer=FOLD))
    return strokes


def mouth(who: Identity, m: Mouth, stronger: float) -> list[Stroke]:
    """Lips, teeth, chin and the folds from nose to lip corners. `stronger`: the side, by its sign."""
    bias = np.where(np.sign(stronger) * T > 0, 1, 1 - 0.75 * min(abs(m.lopsided), 1))
    half = who.mouth_width * max(1 + 0.42 * m.width + 0.1 * m.lift, 0.4)
    x, chin, parted = half * T, max(m.chin, 0), m.open > 0.12
    lift = (3.3 * m.lift + who.mouth_rest) * (bias if m.lift > 0.4 else 1)
    middle = who.mouth_height - lift * (T**2 - 0.35) - 0.6 * m.chin * BOW
    gape = 8 * m.open * (1 - np.abs(T) ** (2 + 3.5 * m.square)) ** (0.55 if m.width < -0.2 else 1)
    raised = 3 * max(m.sneer, 0) * bias * (1 - T**4)
    share = 0.22 if m.lift > 0.4 else 0.5  # of the opening, above the lip line: a grin opens downwards
    upper_in = middle - share * gape - raised * (0.75 if parted else 0.55)
    lower_in = np.maximum(middle + (1 - share) * gape - (0 if parted else 0.45 * raised), upper_in + 0.05)
    lip = who.lip * max(1 - 0.75 * m.press, 0.15)
    upper_out = upper_in - lip * BOW**0.6 * (1 - 0.25 * np.exp(-((T / 0.18) ** 2)))
    lower_out = lower_in + 1.35 * lip * BOW**0.8 * (1 + 0.25 * chin)
    teeth, tone, strokes = min(0.3 * who.skin + 165, 232), who.skin * 0.66, []
    fold = 14 + 18 * who.age + (max(m.lift, 0) * 24 + max(m.sneer, 0) * 26 + m.open * 6) * bias
    for s, end in ((-1, 0), (1, -1)):
        down = xy(
            s * np.array([who.nose_width + 0.9, half * 0.5 + 4.2, half + 2.3, half + 2]),
            [who.nose_length + 0.8, who.nose_length + 3.4, middle[end] - 1.5, middle[end] + 0.5],
        )
        strokes.append(Stroke(down, -fold[end], 1.1, layer=FOLD))
        strokes.append(Stroke(CIRCLE * 0.9 + (s * (half + 0.5), middle[end]), -16 - 20 * m.press, layer=FOLD))
    under = lower_out.max() + 1.1
    strokes += [
        Stroke(xy(0.6 * x, under - 0.6 * T**2), -22 - 16 * chin, 1.2, layer=FOLD),
        Stroke(CIRCLE * (3.2, 1.8) + (0, under + 3.4), 9 - 12 * m.chin, layer=FOLD),
        Stroke(between(x, upper_out, lower_out), tone),
        Stroke(xy(0.6 * x, lower_out - 0.5 * lip)[3:-3], tone * 1.14, 0.5 * lip),
        Stroke(between(x, upper_in, lower_in), min(0.22 * who.skin, 40)),
    ]
    if m.upper_teeth > 0.15:
        edge = np.minimum(upper_in + (2.3 if m.open > 0.3 else 1.8) * m.upper_teeth, lower_in)
        strokes.append(Stroke(between(0.9 * x, upper_in, edge), teeth))
    if m.lower_teeth > 0.15:
        edge = np.maximum(lower_in - 1.6 * m.lower_teeth, upper_in)
        strokes.append(Stroke(between(0.8 * x, edge, lower_in), teeth * 0.93))
    return [*strokes, Stroke(xy(x, upper_in), who.skin * 0.36, 0.45 + 0.35 * m.press)]


def beard(who: Identity, drop: float) -> list[Stroke]:
    if who.beard == "none":
        return []
    tone, lip = 0.45 * who.skin + 0.4 * min(who.hair, who.skin), who.mouth_height - 2.4
    moustache = between(5.8 * T, lip - 0.9 + 1.7 * T**2, lip + 0.8 + 2.6 * T**2)
    if who.beard == "moustache":
        return [Stroke(moustache, tone)]
    jaw = outline(who, drop)[1:19]
    jaw = np.concatenate([jaw[jaw[:, 1] > 4], xy(0.9 * who.head * T, 4 + 6.5 * (1 - np.abs(T) ** 3))])
    if who.beard == "stubble":
        return [Stroke(jaw, -24, layer=FOLD), Stroke(moustache, -22, layer=FOLD)]
    return [Stroke(jaw, tone, depth=0.4), Stroke(moustache, tone), Stroke(jaw, -12, depth=0.4, layer=BROAD)]


def glasses(who: Identity) -> list[Stroke]:
    if not who.glasses:
        return []
    rim, tone = np.sign(CIRCLE) * np.abs(CIRCLE) ** who.jaw * (who.eye_width + 1.7, 3.5), 80 - 50 * who.glasses
    strokes = [Stroke(rim + np.array([s * who.eye_gap, -4.2]), tone, who.glasses, 1.2) for s in (-1, 1)]
    return [*strokes, Stroke(xy([-3, 0, 3], [-5, -5.5, -5]), tone, who.glasses, 1.5)]
