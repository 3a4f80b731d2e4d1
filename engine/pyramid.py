"""Any timm model with feature maps, ours or not, as the backbone of a detector or segmenter.

Keys     `body.` + timm's own keys of the model without what no map needs (classifier, final norm), and `norms.I.` for
         the norm on map I; `backbone.body.stages.0...`, `backbone.norms.0.weight` in a whole detector
Files    `load_state_dict` of the wrapper, or of a detector around it, also takes what the model's family can read: the
         authors' classifier, detector and segmenter files with their output norms, timm's files, `TimmClassifier`'s
Weights  a file is read when the wrapper is built; what is not there yet, or has to be fetched, comes with mmengine's
         `init_weights()` or with the first image, and not at all where a checkpoint was loaded in between: our
         runner asks for it after `load_from` and `resume`
Sizes    what the model takes; options that lift a limit (swin, ViTs) are set, and timm's MaxViT gets our attention
"""

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d, PatchEmbed
from timm.models import group_parameters, maxxvit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones import fuse_attention
from ..backbones._checkpoint import create, some
from ..backbones._errors import UserError
from ..backbones._names import check_model_name, did_you_mean
from .pyramid_weights import COUNTER, read_weights, translate, weights_source

_NORMS: dict[str, Callable[..., nn.Module]] = {"LN": LayerNorm2d, "BN": nn.BatchNorm2d}
_ANY_SIZE = {"strict_img_size": False, "dynamic_img_size": True, "dynamic_img_pad": True}
_SET_HERE = ("num_classes", "global_pool", "features_only", "feature_cls")


@MODELS.register_module()
class TimmPyramid(BaseModule):
    """Feature maps of a timm model: image (B, C, H, W) -> tuple of maps (B, out_channels[i], H_i, W_i).

    `out_channels` and `strides` say what leaves: H_i is H / strides[i], rounded as the model rounds.

    Args:
        model_name: any timm name, with or without the tag of its weights.
        out_indices: numbers of the maps that leave, in ascending order; all maps of the model count, negative numbers
            from the end. None: every map of stride 4 or more.
        drop_path_rate: stochastic depth; None takes the model's own default.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages (a stage ends with a map of
            stride 4 or more). What is frozen has no gradients and stays in eval mode; output norms train.
        norm_eval: keep every BatchNorm of the model in eval mode; its weights and biases train.
        out_norms: `dict(type="LN"|"BN", eps=...)` puts a norm on each map that leaves, and on nothing that goes on
            inside; `indices` names the maps to norm, counted as in `out_indices`, where it is not all that leave.
        with_cp: gradient checkpointing.
        pretrained: True for the published weights of the name's tag, or a file or link.
        init_cfg: mmengine's way to name a file: `dict(type="Pretrained", checkpoint=..., prefix=...)`.
        one_stride: let several maps leave although all have one stride, as a plain ViT's, for a neck that wants that.
        options: further arguments of `timm.create_model`.

    Raises:
        UserError: an option is not what it takes, or the weights do not fit.
    """

    body: Any  # timm's methods are not known to nn.Module

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        out_norms: dict[str, Any] | None = None,
        with_cp: bool = False,
        pretrained: bool | str | Path = False,
        init_cfg: dict[str, Any] | None = None,
        one_stride: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(init_cfg)
        if drop_path_rate is not None:
            options["drop_path_rate"] = drop_path_rate
        self.model_name, self.options = model_name, options
        self.body = self.build_body()
        info = [dict(entry) for entry in self.body.feature_info]
        self.out_indices = _choose_maps(model_name, [entry["reduction"] for entry in info], out_indices, one_stride)
        self.out_channels = [info[i]["num_chs"] for i in self.out_indices]
        self.strides = [info[i]["reduction"] for i in self.out_indices]
        self.body.prune_intermediate_layers(list(self.out_indices), prune_norm=True)
        self.norms = _build_norms(out_norms, dict(zip(self.out_indices, self.out_channels, strict=True)))
        ends = [entry["module"] for entry in info[: self.out_indices[-1] + 1] if entry["reduction"] >= 4]
        self._still = self._freeze(frozen_stages, ends)
        self.norm_eval = norm_eval
        if with_cp:
            self._checkpoint_gradients()
        self._awaited = weights_source(pretrained, init_cfg)
        file = self._awaited.get("checkpoint")
        if file and Path(file).exists():
            self._load_awaited()

    def build_body(self, pretrained: bool = False) -> nn.Module:
        """The whole model without its classifier, open to images of any size where an option does that."""
        check_model_name(self.model_name)
        fixed = [name for name in self.options if name in _SET_HERE]
        if fixed:
            raise UserError(f"TimmPyramid sets {fixed[0]} itself; leave it out of the options of {self.model_name}")
        try:
            body = create(self.model_name, num_classes=0, **self.options)
            known = inspect.signature(type(body).__init__).parameters
            lift = {name: value for name, value in _ANY_SIZE.items() if name in known and name not in self.options}
            if lift or pretrained:
                body = create(self.model_name, pretrained, num_classes=0, **self.options, **lift)
        except TypeError as error:
            raise _unknown_option(self.model_name, error) from error
        except RuntimeError as error:
            if "pretrained tag" not in str(error):
                raise
            raise UserError(str(error)) from error
        if not hasattr(body, "forward_intermediates") or not hasattr(body, "prune_intermediate_layers"):
            raise UserError(f"{self.model_name} gives no feature maps: timm's class {type(body).__name__} has none")
        if type(body) is maxxvit.MaxxVit:  # made for one size of image; ours takes all, with the same parameters
            with suppress(UserError):
                fuse_attention(body)
        for module in body.modules():
            if isinstance(module, PatchEmbed) and not module.strict_img_size:
                module.dynamic_img_pad = True
        return body

    def _freeze(self, stages: int, ends: list[str]) -> list[str]:
        """Take the stem and the first stages out of training; returns the names of the modules that rest."""
        if isinstance(stages, bool) or not isinstance(stages, int) or not -1 <= stages <= len(ends):
            raise UserError(
                f"frozen_stages is {stages!r}; {self.model_name} takes -1 (nothing), 0 (the stem) "
                f"and up to {len(ends)} (as many stages)"
            )
        if stages == -1:
            return []
        frozen = self._stem()
        if stages or not frozen:
            place = {name: i for i, (name, _) in enumerate(self.body.named_modules())}
            end = ends[max(stages, 1) - 1] if ends else "?"
            inside = [i for name, i in place.items() if f"{name}.".startswith(f"{end}.")]
            if not inside:
                raise UserError(
                    f"frozen_stages is {stages}: the stages of {self.model_name} cannot be told apart; take -1"
                )
            until = inside[-1] + 1 if stages else inside[0]
            frozen |= {name for name, _ in self.body.named_parameters() if place[name.rpartition(".")[0]] < until}
        for name, parameter in self.body.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        return [
            prefix
            for prefix, module in self.body.named_modules()
            if (owned := [name for name, _ in module.named_parameters(prefix)]) and frozen.issuperset(owned)
        ]

    def _stem(self) -> set[str]:
        """The parameters that timm counts to the stem; none where it does not say."""
        try:
            return set(group_parameters(self.body, self.body.group_matcher(coarse=True)).get(0, ()))
        except (AttributeError, AssertionError):
            return set()

    def _checkpoint_gradients(self) -> None:
        try:
            self.body.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise UserError(f"with_cp=True: {self.model_name} has no gradient checkpointing in timm") from error

    def train(self, mode: bool = True) -> "TimmPyramid":
        """`nn.Module.train`; what is frozen, and with `norm_eval` every BatchNorm of the model, stays in eval mode."""
        super().train(mode)
        for name in self._still:
            self.body.get_submodule(name).eval()
        if self.norm_eval:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image (B, C, H, W) -> maps (B, C', H', W'), one for each of `out_indices`, finest first."""
        if self._awaited:
            self._load_awaited()
        try:
            maps = self.body.forward_intermediates(x, indices=list(self.out_indices), intermediates_only=True)
        except (AssertionError, RuntimeError) as error:
            size = self.body.pretrained_cfg["input_size"][1:]
            if not self.body.pretrained_cfg.get("fixed_input_size") or tuple(x.shape[2:]) == tuple(size):
                raise
            raise UserError(
                f"{self.model_name} cannot take images of {x.shape[2]}x{x.shape[3]}; it is made for "
                f"{size[0]}x{size[1]}, and for another fixed size where timm's option img_size is given"
            ) from error
        named = zip(map(str, self.out_indices), maps, strict=True)
        return tuple((self.norms[i](x) if i in self.norms else x).contiguous() for i, x in named)

    # --- weights ---

    def init_weights(self) -> None:
        """Load the weights that were asked for, unless they are there; timm initialised the rest when it built it."""
        if self._awaited:
            self._load_awaited()
        self._is_init = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, `init_weights` fetches nothing; after it the weights that were asked for are still to come."""
        awaited, self._awaited = self._awaited, {}
        try:
            yield
        finally:
            self._awaited = awaited

    def apply(self, fn: Callable[[nn.Module], None]) -> "TimmPyramid":
        """`nn.Module.apply`; the initialisers of a detector's own `init_cfg` pass by and leave the weights alone."""
        if (getattr(fn, "__module__", None) or "").startswith("mmengine.model"):
            return self
        return super().apply(fn)

    def _load_awaited(self) -> None:
        if any(value.is_meta for value in self.body.parameters()):
            return
        awaited, self._awaited = self._awaited, {}  # or `_load_from_state_dict` would ask for them again
        try:
            self._load(awaited["checkpoint"], awaited["prefix"])
        except Exception:
            self._awaited = awaited
            raise

    def _load(self, file: str | Path | None, prefix: str) -> None:
        """Load the keys of a file that begin with `prefix`, or the published weights where there is none."""
        if file is None:
            published = self._published().state_dict()
            self.body.load_state_dict({key: published[key] for key in self.body.state_dict()})
            return
        translated, unused = translate(read_weights(file, prefix, self.model_name), self, str(file))
        missing = [key for key in self.load_state_dict(translated, strict=False)[0] if not key.endswith(COUNTER)]
        said = f"{file}: {len(translated)} tensors loaded into {self.model_name}"
        said += f"; not in the file, as initialised: {some(missing)}" if missing else "; none is missing"
        said += f"; not used: {some(unused)}" if unused else "; all of the file is used"
        MMLogger.get_current_instance().log(logging.WARNING if missing else logging.INFO, said)

    def _published(self) -> nn.Module:
        """The whole model with its published weights."""
        cfg = self.body.pretrained_cfg
        if any(cfg.get(place) for place in ("url", "hf_hub_id", "file", "state_dict")):
            return self.build_body(pretrained=True)
        published = f"; the authors' page is {cfg['origin_url']}" if cfg.get("origin_url") else ""
        raise UserError(
            f"no direct link leads to weights of {self.model_name}{published}: set the backbone's pretrained=FILE "
            "(model.backbone.pretrained), which takes the authors' file, or False"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Called by every `load_state_dict`, mmengine's too: keys that are not ours go through the family's filter."""
        given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if given:
            if not given.keys() & self.state_dict().keys():
                translated, _ = translate(given, self, "that is loaded")
                for key in given:
                    del state_dict[prefix + key]
                state_dict.update({prefix + key: value for key, value in translated.items()})
            lacking = [key for key in self.body.state_dict() if f"{prefix}body.{key}" not in state_dict]
            if self._awaited and any(not key.endswith(COUNTER) for key in lacking):
                self._load_awaited()
            self._awaited = {}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _choose_maps(name: str, strides: list[int], wanted: Sequence[int] | None, one_stride: bool) -> tuple[int, ...]:
    """The numbers, from 0, of the maps that leave."""
    count = len(strides)
    accepted = f"{name} has {count} maps (strides {', '.join(map(str, strides))}): numbers from {-count} to {count - 1}"
    if wanted is None:
        wanted = [i for i, stride in enumerate(strides) if stride >= 4]
    try:
        taken = tuple(range(count)[i] for i in wanted)
    except (TypeError, IndexError):
        raise UserError(f"out_indices is {wanted!r}; {accepted}") from None
    if not taken or list(taken) != sorted(set(taken)):
        raise UserError(f"out_indices is {wanted!r}; it takes each map once, in ascending order; {accepted}")
    if len(taken) > 1 and len({strides[i] for i in taken}) == 1 and not one_stride:
        raise UserError(
            f"{name} gives {len(taken)} maps of one stride, {strides[taken[0]]}, which are no pyramid: take its last "
            "map (out_indices=(-1,)) and the neck SimplePyramid, or a model whose stages shrink the map; "
            "one_stride=True lets them leave for a neck that wants them so"
        )
    return taken


def _build_norms(out_norms: dict[str, Any] | None, channels: dict[int, int]) -> nn.ModuleDict:
    """A norm for each map that gets one, under the map's number."""
    if out_norms is None:
        return nn.ModuleDict()
    given = dict(out_norms)
    kind, indices = given.pop("type", None), given.pop("indices", tuple(channels))
    if kind not in _NORMS or given.keys() - {"eps"}:
        raise UserError(f"out_norms is {out_norms!r}; it takes type 'LN' or 'BN', and eps and indices if need be")
    if not set(indices) <= channels.keys():
        raise UserError(f"out_norms has indices {indices!r}; the maps that leave are {', '.join(map(str, channels))}")
    return nn.ModuleDict({str(i): _NORMS[kind](channels[i], eps=given.get("eps", 1e-5)) for i in indices})


def _unknown_option(name: str, error: TypeError) -> Exception:
    """One sentence where the model lacks an option, or its name settles it; other errors stay what they are."""
    found = re.search(r"multiple values for keyword argument '(\w+)'", str(error))
    if found:
        return UserError(f"{name} sets {found[1]!r} itself; no option changes it")
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not found:
        return error
    parameters = inspect.signature(type(create(name)).__init__).parameters.values()
    known = [p.name for p in parameters if p.name not in ("self", *_SET_HERE) and p.kind is not p.VAR_KEYWORD]
    return UserError(
        f"{name} takes no option {found[1]!r}.{did_you_mean(found[1], known)} It takes {', '.join(known)}."
    )
