"""The pictures of `visualize`: a model's view of one image, drawn over it, and the facts that results.json keeps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import Classifier
from vertebra.tools._visualize.attention_maps import Call, weights
from vertebra.tools._visualize.feature_maps import FeatureMap, as_map, captured
from vertebra.tools._visualize.grad_cam import grad_cam
from vertebra.tools._visualize.overlays import (
    TINTS,
    captioned,
    dim_unseen,
    grey,
    heat_over,
    line,
    mark,
    outline,
    tinted,
)
from vertebra.tools._visualize.receptive_field import centre_of, receptive_field, side_of_square
from vertebra.tools._visualize.regions import Cut, cuts, members, routes
from vertebra.tools._visualize.view import View

SHARE = 0.95  # of the gradient, in the square of a receptive field
_LEAST_GAP = 10  # pixels between lines; closer ones hide what is between them

Look = tuple[Image.Image, dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A model and an image it looks at."""

    classifier: Classifier
    picture: Image.Image
    """What is drawn over: the user's, larger where it is tiny and smaller where it is huge."""
    view: View
    """Of `picture`."""
    images: Tensor
    """(1, 3, h, w), as the model is evaluated."""
    place: tuple[float, float]
    """The query's, x and y, in pixels of the model's image."""
    at: tuple[float, float]
    """The same in the user's picture."""

    def token(self, call: Call) -> tuple[int, int]:
        """Row and column of the token at the place."""
        x, y = (int(side // call.stride) for side in self.place)
        return min(y, call.size[0] - 1), min(x, call.size[1] - 1)

    @property
    def ground(self) -> Image.Image:
        """The picture in grey, dark where the model sees nothing."""
        seen = self.view.lay(torch.ones(self.view.seen[::-1]), 1)
        return dim_unseen(grey(self.picture), ~np.isnan(seen))

    def mark(self, picture: Image.Image) -> None:
        """Draw the place into a picture."""
        mark(picture, *self.view.back(*self.place))

    def caption(self, picture: Image.Image, layer: str, text: str, scale: tuple[str, str] | None = None) -> Image.Image:
        """The picture with the model's and the layer's name and a text below."""
        return captioned(picture, f"{self.classifier.name}, {layer}: {text}", scale)


def check_head(calls: Iterable[Call], head: int | None) -> None:
    """UserError if one of the attentions has no such head."""
    for call in calls:
        if head is not None and not 0 <= head < call.heads:
            raise UserError(f"--head is {head}; {call.layer} has the heads 0 to {call.heads - 1}")


def attention(subject: Subject, call: Call, head: int | None) -> Look:
    """What the token at the place takes of all others, by one head (see `check_head`) or the mean of all."""
    of_heads, outside = weights(call, *subject.token(call))
    found, beyond = (x.mean(0) if head is None else x[head] for x in (of_heads, outside))
    most = float(found.max())
    heat = subject.view.lay((found.clamp(min=0) / max(most, 1e-12)).sqrt(), call.stride)  # or few peaks hide the rest
    picture = heat_over(subject.picture, heat)
    subject.mark(picture)
    whose = f"head {head}" if head is not None else f"mean of {call.heads} heads" if call.heads > 1 else "one head"
    text = f"{call.kind.replace('_', ' ')}. What the ring's token takes of every place, {whose}"
    if float(beyond) > 0.0005:
        text += f"; {float(beyond):.1%} goes to padding"
    if float(found.min()) < 0:
        text += f"; weights below 0, down to {float(found.min()):.2g}, are drawn as 0"
    text += "; colours go by the square root"
    facts = {
        "operator": call.kind,
        "at": list(subject.at),
        "token": list(subject.token(call)),
        "map": list(call.size),
        "heads": call.heads,
        "head": head,
        "largest": most,
        "on_padding": float(beyond),
    }
    return subject.caption(picture, call.layer, text, ("0", f"{most:.2g}")), facts


def windows(subject: Subject, call: Call) -> Look:
    """The windows of the map as lines, and the tokens in the window of the place tinted."""
    picture, view, stride = subject.ground, subject.view, call.stride
    ways = list(zip(cuts(call), members(call, *subject.token(call)), TINTS, strict=False))
    for _, tokens, tint in ways:
        picture = tinted(picture, view.lay(tokens.float(), stride) > 0.5, tint)
    for cut, _, _ in ways:
        _draw_cuts(subject, picture, cut, call)
    subject.mark(picture)
    given = call.arguments
    sizes = [list(size) for size in (given["window"], given.get("cross_window")) if size is not None]
    text = " and ".join(f"{tall} x {wide}" for tall, wide in sizes)
    lie = "one token of each cell" if given.get("partition") == "grid" else "neighbours"
    text = f"windows of {text} tokens, {lie}; a token is {stride} pixels of the model's image. The ring's are tinted"
    if any(any(_dense(subject, cut, call)) for cut, _, _ in ways):
        text += "; lines too close to tell apart are left out"
    facts = {"operator": call.kind, "at": list(subject.at), "map": list(call.size), "windows": sizes, "stride": stride}
    return subject.caption(picture, call.layer, text), facts


def _dense(subject: Subject, cut: Cut, call: Call) -> list[bool]:
    """For rows and for columns, if their lines would lie too close."""
    gaps = [min((b - a for a, b in pairwise(edges)), default=call.size[i]) for i, edges in enumerate(cut.sides)]
    return [gap * call.stride / scale < _LEAST_GAP for gap, scale in zip(gaps, subject.view.scale[::-1], strict=True)]


def _draw_cuts(subject: Subject, picture: Image.Image, cut: Cut, call: Call) -> None:
    """Draw the lines of a cut; where they are too close, those next to the place alone."""
    view, (width, height), token = subject.view, subject.view.seen, subject.token(call)
    rows, columns = (
        _next_to(edges, at) if dense else edges
        for edges, at, dense in zip(cut.sides, token, _dense(subject, cut, call), strict=True)
    )
    for y in (row * call.stride for row in rows if row * call.stride < height):
        line(picture, (*view.back(0, y), *view.back(width, y)))
    for x in (column * call.stride for column in columns if column * call.stride < width):
        line(picture, (*view.back(x, 0), *view.back(x, height)))


def _next_to(edges: Sequence[int], at: int) -> list[int]:
    """Those that a token lies between."""
    before, behind = [edge for edge in edges if edge <= at], [edge for edge in edges if edge > at]
    return before[-1:] + behind[:1]


def routed(subject: Subject, call: Call) -> Look:
    """The regions of the map as lines, that of the place outlined, and those it is routed to tinted."""
    view, stride, found = subject.view, call.stride, routes(call, *subject.token(call))
    tall, wide = found.tokens
    tokens = torch.zeros(found.regions[0] * tall, found.regions[1] * wide)
    for row, column in found.routed:
        tokens[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = 1
    picture = tinted(subject.ground, view.lay(tokens, stride) > 0.5, TINTS[0])
    _draw_cuts(subject, picture, Cut(_edges(found.regions[0], tall), _edges(found.regions[1], wide)), call)
    row, column = found.region
    box = [edge * stride for edge in (column * wide, row * tall, (column + 1) * wide, (row + 1) * tall)]
    outline(picture, view.box(*box), TINTS[1], 3)
    subject.mark(picture)
    hidden = sum(row * tall >= call.size[0] or column * wide >= call.size[1] for row, column in found.routed)
    text = f"the {len(found.routed)} of {found.regions[0]} x {found.regions[1]} regions that the ring's one attends to"
    text += f"; {hidden} of them are padding" if hidden else ""
    facts = {
        "at": list(subject.at),
        "map": list(call.size),
        "regions": list(found.regions),
        "tokens_in_region": list(found.tokens),
        "region": list(found.region),
        "routed": [list(region) for region in found.routed],
    }
    return subject.caption(picture, call.layer, text), facts


def _edges(count: int, side: int) -> list[int]:
    return [i * side for i in range(1, count)]


def reasons(subject: Subject, features: Sequence[FeatureMap], target: int | None) -> list[Look]:
    """Grad-CAM of a class, the predicted one if none is given, in each of some feature maps.

    Raises:
        UserError: the model has no classifier, or a map does not lead to it.
    """
    classifier, view = subject.classifier, subject.view
    cams, logits = grad_cam(classifier.model, subject.images, features, target)
    index = int(logits.argmax()) if target is None else target
    score = float(logits.float().softmax(0)[index])
    looks = []
    for feature, cam in zip(features, cams, strict=True):
        # a network that does not pad has fewer pixels in its map than its stride says
        stride = max(feature.stride, view.seen[0] / cam.shape[1], view.seen[1] / cam.shape[0])
        heat = view.lay(cam / cam.max().clamp(min=1e-12), stride, smooth=True)
        label = classifier.label(index)
        text = f"Grad-CAM of {label!r}, scored {score:.1%}" + (" (predicted)" if target is None else "")
        text += "" if float(cam.max()) > 0 else ": nothing in this map speaks for it"
        picture = subject.caption(heat_over(subject.picture, heat), feature.layer, text, ("none", "most"))
        said = {"label": label, "index": index, "score": round(score, 6)}
        looks.append((picture, {"class": said, "map": list(cam.shape), "stride": feature.stride}))
    return looks


def field(subject: Subject, feature: FeatureMap, samples: int) -> Look:
    """The effective receptive field of a feature map's centre, and the square that holds 95 % of it.

    Raises:
        UserError: the module gives no map.
    """
    model, view = subject.classifier.model, subject.view

    def map_of(images: Tensor) -> Tensor:
        with captured(model, [feature.layer]) as results:
            model(images)
        return as_map(model, feature, results[feature.layer], images)

    shape = (subject.images.shape[1], view.seen[1], view.seen[0])
    found = receptive_field(map_of, shape, samples, device=subject.images.device)
    y, x = centre_of(found)
    side = side_of_square(found, (y, x), SHARE)
    heat = view.lay((found / found.max()).sqrt(), 1, smooth=True)
    picture = heat_over(subject.picture, heat)
    outline(picture, view.box(x - side / 2, y - side / 2, x + side / 2, y + side / 2), "white", 2)
    text = (
        f"effective receptive field of the map's centre. {SHARE:.0%} of the gradient lies within {side} x {side} of "
        f"the {view.seen[0]} x {view.seen[1]} pixels that the model sees, around its centre of mass. Mean of {samples} "
        f"image{'s' * (samples > 1)} of noise; colours go by the square root"
    )
    facts = {"side": side, "share": SHARE, "centre": [x, y], "sees": list(view.seen), "samples": samples}
    return subject.caption(picture, feature.layer, text, ("0", "most")), facts
