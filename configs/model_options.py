"""Options: the speed and memory switches of a model card, and how exact a picture stays with them. Knows no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.base import Frozen


class Exactness(StrEnum):
    """How a picture compares with the one that the same weights give without any option, on the same machine."""

    BIT = "bit"
    """The same bytes."""
    TOLERANCE = "tolerance"
    """The same sums in another order: equal within rounding, but not byte by byte."""
    APPROXIMATE = "approximate"
    """Something is left out or rounded on purpose: look before it is used for a final film."""


_ORDER = (Exactness.BIT, Exactness.TOLERANCE, Exactness.APPROXIMATE)


def worst(classes: Iterator[Exactness] | tuple[Exactness, ...]) -> Exactness:
    """The least exact of them; BIT for none."""
    return max(classes, key=_ORDER.index, default=Exactness.BIT)


class Effect(Frozen):
    """What one option does to pictures."""

    option: str
    exactness: Exactness
    why: str

    def render(self) -> str:
        """`compile (tolerance): regional: fused kernels round less often`."""
        return f"{self.option} ({self.exactness}): {self.why}"


ATTENTION: Mapping[str, Exactness] = {
    "native": Exactness.BIT,
    **dict.fromkeys(
        ("_native_cudnn", "_native_flash", "_native_efficient", "_native_math", "_native_npu", "_native_xla", "flex",
         "flash", "flash_varlen", "_flash_3", "_flash_varlen_3", "xformers"), Exactness.TOLERANCE),
    **dict.fromkeys(
        ("sage", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90",
         "_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton"), Exactness.APPROXIMATE),
}
"""diffusers' names of attention back ends. `native` is torch's own choice, which is what a card without options has;
the sage ones round queries and keys to eight bits."""
FROM_THE_HUB: Mapping[str, str] = {
    "flash_hub": "flash", "flash_varlen_hub": "flash_varlen", "flash_4_hub": "flash", "_flash_3_hub": "_flash_3",
    "_flash_3_varlen_hub": "_flash_varlen_3", "aiter_fa2_hub": "flash", "sage_hub": "sage",
    "sage_blackwell_hub": "sage"}
"""Those that download compiled code when they are chosen, and the one of an installed package that is nearest."""

TORCHAO = ("int8_weight_only", "int8_dynamic", "float8_weight_only", "float8_dynamic")
"""Schemes of the package torchao. `dynamic` ones round what flows through the layers too, not only their weights."""
FLOAT8_STORAGE = "float8_storage"
"""Weights are kept in eight bits and widened layer by layer while they are used; part of diffusers."""
GGUF = "gguf:"
"""`gguf:FILE`: the component's weights come from a GGUF file instead of the checkpoint's own."""
DENOISERS = ("transformer", "unet", "prior")
"""How the names of components begin that predict noise: `transformer_2` too."""


class VaeOptions(Frozen):
    """How pictures are decoded."""

    tiling: bool = False
    """In tiles: less memory, seams are blended. The card's older `vae_tiling` says the same."""
    slicing: bool = False
    """One picture of a batch after the other."""
    channels_last: bool = False
    """Its convolutions' weights in the memory order that GPUs with tensor cores read faster."""


class TextCache(Frozen):
    """Encoded prompts that a replica remembers; the oldest unused ones go first."""

    prompts: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most of them."""
    mb: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Most memory that they take, in 10^6 bytes, where the text encoders' results are."""


class Options(Frozen):
    """Speed and memory switches. What a pipeline cannot do is refused when it is loaded, not left out."""

    attention: tuple[str, ...] = ()
    """diffusers' attention back ends, best first; the first that works on the GPU at hand is used. Empty: torch's own
    choice."""
    attention_slicing: Literal["none", "auto", "max"] = "none"
    """UNets only: attention in two steps (`auto`) or head by head (`max`)."""
    vae: VaeOptions = VaeOptions()
    quantise: dict[str, str] = Field(default_factory=dict)
    """Component -> scheme, e.g. `transformer: float8_weight_only`."""
    offload: Literal["none", "model", "group", "sequential"] = "none"
    """Weights in main memory, brought to the GPU component by component, layer by layer (`group`), or weight by weight
    (`sequential`)."""
    text_cache: TextCache | None = None
    """Remember encoded prompts: takes of a shot, and the negative prompt of a film, are encoded once."""
    evict_text_encoders: bool = False
    """Text encoders are in main memory but for the moment in which they encode."""
    compile: Literal["none", "regional"] = "none"
    """`regional`: the denoiser's repeated blocks are compiled when a replica starts, at the card's default shape."""

    def effects(self) -> tuple[Effect, ...]:
        """Every option that is on, in the order of the fields, with what it does to pictures."""
        return tuple(self._effects())

    @property
    def exactness(self) -> Exactness:
        """Of all options together: that of the least exact one."""
        return worst(tuple(effect.exactness for effect in self.effects()))

    @property
    def changes_memory(self) -> bool:
        """Weights are smaller than the card's figures say, or lie elsewhere, so those figures do not hold."""
        return self.offload != "none" or self.evict_text_encoders or bool(self.quantise)

    def for_digest(self) -> dict[str, Any]:
        """What of them can change a picture, as JSON; what leaves every byte as it is does not count."""
        lossy = {effect.option for effect in self.effects() if effect.exactness is not Exactness.BIT}
        tree = self.model_dump(mode="json")
        found = {name: tree[name] for name in ("attention", "attention_slicing", "quantise", "compile")
                 if name in lossy or any(option.startswith(f"{name}.") for option in lossy)}
        vae = {name: True for name in ("tiling", "channels_last") if f"vae.{name}" in lossy}
        return {**found, **({"vae": vae} if vae else {})}

    def _effects(self) -> Iterator[Effect]:
        if self.attention:
            yield Effect(option="attention", exactness=worst(tuple(ATTENTION[name] for name in self.attention)),
                         why=f"{', '.join(self.attention)}: other kernels add in another order" if
                         self.attention != ("native",) else "what torch takes anyway")
        if self.attention_slicing != "none":
            yield Effect(option="attention_slicing", exactness=Exactness.TOLERANCE,
                         why="attention in parts, by other kernels")
        yield from self._vae_effects()
        for component, scheme in self.quantise.items():
            yield Effect(option=f"quantise.{component}", exactness=Exactness.APPROXIMATE,
                         why=f"{scheme}: its weights are rounded")
        if self.offload != "none":
            yield Effect(option="offload", exactness=Exactness.BIT, why=f"{self.offload}: the same kernels, later")
        if self.text_cache is not None:
            yield Effect(option="text_cache", exactness=Exactness.BIT, why="what was encoded before, byte by byte")
        if self.evict_text_encoders:
            yield Effect(option="evict_text_encoders", exactness=Exactness.BIT, why="the same kernels, later")
        if self.compile != "none":
            yield Effect(option="compile", exactness=Exactness.TOLERANCE,
                         why=f"{self.compile}: fused kernels round less often")

    def _vae_effects(self) -> Iterator[Effect]:
        if self.vae.tiling:
            yield Effect(option="vae.tiling", exactness=Exactness.APPROXIMATE, why="seams between tiles are blended")
        if self.vae.slicing:
            yield Effect(option="vae.slicing", exactness=Exactness.BIT, why="a single picture or clip is one slice")
        if self.vae.channels_last:
            yield Effect(option="vae.channels_last", exactness=Exactness.TOLERANCE, why="other convolution kernels")

    @field_validator("attention")
    @classmethod
    def _are_back_ends(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name in FROM_THE_HUB:
                raise ValueError(f"{name!r} would download and run compiled code from the hub, which reelray never "
                                 f"does; nearest valid: {FROM_THE_HUB[name]}, from an installed package")
            if name not in ATTENTION:
                raise ValueError(f"no attention back end {name!r}{_nearest(name, ATTENTION)}")
        return names

    @field_validator("quantise")
    @classmethod
    def _are_schemes(cls, wanted: dict[str, str]) -> dict[str, str]:
        schemes = (*TORCHAO, FLOAT8_STORAGE)
        for component, scheme in wanted.items():
            if scheme.startswith(GGUF) and scheme.removeprefix(GGUF).endswith(".gguf"):
                continue
            if scheme not in schemes:
                raise ValueError(f"{component}: no scheme {scheme!r}{_nearest(scheme, schemes)}; there are "
                                 f"{', '.join(schemes)}, and {GGUF}FILE with a file that ends in .gguf")
        return wanted

    @model_validator(mode="after")
    def _go_together(self) -> Options:
        if self.attention and self.attention_slicing != "none":
            raise ValueError("attention_slicing replaces the attention back end; take one of the two out")
        if self.compile != "none" and self.offload in ("group", "sequential"):
            raise ValueError(f"compile does not go with offload: {self.offload}, which moves weights between the "
                             "compiled parts; nearest valid: offload: model, or compile: none")
        cast = [name for name, scheme in self.quantise.items()
                if scheme == FLOAT8_STORAGE and name.startswith(DENOISERS)]
        if self.compile != "none" and cast:
            raise ValueError(f"compile does not go with {cast[0]}: {FLOAT8_STORAGE}, whose widening breaks every block "
                             f"into pieces; nearest valid: {cast[0]}: float8_weight_only")
        if self.evict_text_encoders and self.offload != "none":
            raise ValueError(f"offload: {self.offload} takes the text encoders off the GPU already; take "
                             "evict_text_encoders out")
        if self.offload == "sequential" and self.quantise:
            raise ValueError("offload: sequential moves single weights, which quantised ones do not allow; nearest "
                             "valid: offload: group")
        return self


def _nearest(name: str, names: Mapping[str, Any] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; nearest valid: {close[0]}" if close else ""
