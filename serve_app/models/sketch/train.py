"""Trains the sketch model from nothing on drawn scenes: `python -m serve_app.models.sketch.train --out DIR`.

Three stages, each alone with --stage. `codec` fits encoder and decoder together; `denoiser` trains the text encoder and
the transformer on the encoder's latents, writes a loadable pipeline to DIR/pipeline as it goes, and continues with
--resume; `decoder` polishes the decoder at full size, for a few minutes, without changing what a latent means.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from serve_app.models.sketch import scenes
from serve_app.models.sketch.run import Plan
from serve_app.models.sketch.train_codec import load_codec, polish_decoder, train_codec
from serve_app.models.sketch.train_denoiser import train_denoiser

STAGES = ("codec", "denoiser", "decoder")
MINUTES = {"codec": 20.0, "denoiser": 60.0, "decoder": 8.0}
"""On two CPU cores; on a GPU a tenth of it is more than enough."""
LEARNING_RATES = {"codec": 2e-3, "denoiser": 2.5e-3, "decoder": 1e-3}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the pipeline, the curves and the state")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    for stage in STAGES:
        parser.add_argument(f"--{stage}-minutes", type=float, default=MINUTES[stage], metavar="M",
                            help=f"how long the {stage} trains, resumed parts included (default {MINUTES[stage]:g})")
    parser.add_argument("--save-every", type=float, default=5.0, metavar="M", help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="continue codec and denoiser where DIR was left")
    return parser.parse_args()


def main() -> None:
    """Run the stages asked for, in their order."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # tiny moments of rare words would slow every step
    args.out.mkdir(parents=True, exist_ok=True)
    world = scenes.load_world()
    minutes = {"codec": args.codec_minutes, "denoiser": args.denoiser_minutes, "decoder": args.decoder_minutes}
    plans = {stage: Plan(out=args.out, minutes=minutes[stage], learning_rate=LEARNING_RATES[stage], seed=args.seed,
                         save_every_minutes=args.save_every, device=torch.device(args.device)) for stage in STAGES}
    if args.stage in ("all", "codec"):
        train_codec(plans["codec"], world, resume=args.resume)
    if args.stage in ("all", "denoiser"):
        train_denoiser(plans["denoiser"], world, load_codec(args.out), resume=args.resume)
    if args.stage in ("all", "decoder"):
        polish_decoder(plans["decoder"], world)


if __name__ == "__main__":
    main()
