"""`belvedere pretrain`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from belvedere.commands.options import command_parser
from belvedere.core.errors import EXIT_DONE, EXIT_RUN_AGAIN, BelvedereError, CheckpointError, UsageError
from belvedere.core.log import say
from belvedere.recipe.shipped import recipe_names

if TYPE_CHECKING:
    from belvedere.recipe.schema import Recipe

_DESCRIPTION = """\
Pretrain a backbone by a recipe: the name of a shipped one (`belvedere recipes` lists them) or a YAML file.
Any value of the recipe can be set on the command line as key.path=value.

The images, data.path=DIR, may lie in any folder, flat or nested, labelled or not. Everything is written to
run.dir (default: runs/NAME): metrics.jsonl, checkpoints, and the current backbone. Ctrl-C or SIGTERM saves
after the step under way, with exit status 75, which says: run it again; a second Ctrl-C quits at once, with
status 130. The same command continues.

init.from=DIR begins with the weights of another run (any method, finished or not), of its backbone folder, or
of an import (`belvedere import`): all that fits, the rest is listed; schedules and optimizer begin anew. That
is how a finished run is lengthened: init.from=runs/x run.dir=runs/x-2 train.epochs=40. With
init.start_epoch=N the run goes on at that epoch instead, with its schedules."""

_EXAMPLES = """\
  belvedere pretrain tiny/msn
  belvedere pretrain msn/vits16 data.path=photos run.dir=runs/photos --dry-run
  belvedere pretrain msn/vits16 data.path=photos \\
      train.global_batch=256 run.micro_batch=32
  belvedere pretrain swav/rn50-200ep-b256 data.path=photos \\
      init.from=weights/swav
  belvedere pretrain tiny/msn train.epochs=40 init.from=runs/tiny/msn \\
      run.dir=runs/tiny/msn-2
  torchrun --nproc-per-node=8 -m belvedere pretrain msn/vits16 \\
      data.path=photos"""


def parser() -> argparse.ArgumentParser:
    """The options of `belvedere pretrain`."""
    parser = command_parser("pretrain", _DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a shipped recipe's name, or a .yaml file"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="values that replace those of the recipe"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check recipe, images, memory and disk, print the plan, take the first step, tell how long the "
        "run will take; write nothing",
    )
    parser.unknown = (
        "; values of the recipe are given as key.path=value, such as data.path=DIR train.epochs=3 "
        "(`belvedere recipes --keys` lists them)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, or try to; 0 when the run is complete, 75 when it was stopped with everything saved."""
    if args.recipe is None:
        names = ", ".join(recipe_names())
        raise UsageError(f"name a recipe, belvedere pretrain RECIPE: one of {names}; or a .yaml file")
    import torch

    from belvedere.recipe.load import load_recipe
    from belvedere.train.directory import ChangedRecipeError

    recipe = load_recipe(args.recipe, args.overrides)
    try:
        again = command_line(["pretrain", args.recipe, *args.overrides])
        if args.dry_run:
            from belvedere.train.dry import dry_run

            dry_run(recipe)
            say(f"start with: {again}")
            return EXIT_DONE
        return _train(recipe, again=again)
    except ChangedRecipeError as error:
        if error.anew is None:
            raise
        raise CheckpointError(f"{error}\n  that is\n    {_anew(args, error.anew)}") from error
    except torch.OutOfMemoryError as error:
        raise BelvedereError(
            f"the device's memory is too small: {str(error).splitlines()[0]}\n"
            "  set run.micro_batch to fewer rows at a time: the same run with less memory"
        ) from error


def _anew(args: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The command line of a new run with these overrides in the place of those given for the same keys."""
    replaced = {"init", "run.dir"} | {override.partition("=")[0] for override in overrides}
    kept = [given for given in args.overrides if given.partition("=")[0].strip() not in replaced]
    return command_line(["pretrain", args.recipe, *kept, *overrides])


def _train(recipe: Recipe, *, again: str) -> int:
    from belvedere.engine.progress import duration
    from belvedere.train.run import pretrain

    outcome = pretrain(recipe, ends_process=True)
    done = f"{outcome.step} of {outcome.total_steps} steps, {duration(outcome.seconds)} this time"
    if outcome.stopped:
        say(f"stopped after {done}; everything is saved in {outcome.directory}\n  continue with: {again}")
        return EXIT_RUN_AGAIN
    say(
        f"done: {done}; the backbone is in {outcome.directory / 'backbone'}\n"
        f"  next: {command_line(['evaluate', str(outcome.directory), '--data', 'DIR'], alone=True)}"
    )
    return EXIT_DONE


def command_line(
    words: Sequence[str],
    *,
    alone: bool = False,
    environment: Mapping[str, str] = os.environ,
    program: str | None = None,
) -> str:
    """The line that starts belvedere with these words the way this process was started.

    alone: as one process, also from under torchrun.
    """
    program = sys.argv[0] if program is None else program
    by_name = Path(program).name == "belvedere"
    start = ["belvedere"] if by_name else [Path(sys.executable).name, "-m", "belvedere"]
    num_processes = environment.get("WORLD_SIZE", "1")
    if not alone and int(num_processes) > 1:
        if environment.get("LOCAL_WORLD_SIZE", num_processes) != num_processes:
            return f"the same torchrun command on every machine, ending in: {shlex.join(words)}"
        start = ["torchrun", f"--nproc-per-node={num_processes}", "-m", "belvedere"]
    return shlex.join([*start, *words])
