"""The command ``lotion tune``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lotion_theory.files import write_text

from ..documents import yaml_text
from ..lm.options import Options, default_name
from ..progress import Bar
from ..settings import to_dict


@dataclass(frozen=True)
class Tune(Options):
    """Search the learning rate, and λ of lotion or cage, for the lowest mean RTN loss over several seeds.

    The search is Optuna's. Stop it at any moment and start it again with the same options: it goes on. Writes
    OUT/best.yaml for `lotion train --config`.

    Example: lotion tune --preset tiny --method lotion --format int4 --trials 20 --out runs/tune
    """

    trials: Annotated[int, tyro.conf.arg(help="settings to try, those tried before included")] = 20
    seeds: Annotated[int, tyro.conf.arg(help="runs of each setting")] = 2
    lr_range: Annotated[tuple[float, float], tyro.conf.arg(help="lowest and highest learning rate")] = (3e-4, 3e-2)
    weight_range: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(help="lowest and highest λ; default: 0.1 to 10 for lotion, else not tuned"),
    ] = None
    out: Annotated[Path | None, tyro.conf.arg(help="folder of the search; default: runs/tune/ and a name")] = None

    def run(self, console: Console) -> int:
        """Tune with a progress bar; print the trials and the command that trains with the best settings."""
        from ..lm.measure.tune import Stopped, tune

        config = self.resolved()
        if self.lr is not None:
            raise ValueError(f"--lr {self.lr:g}: the learning rate is what is tuned; bound it by --lr-range")
        weight = self.weight_range
        if weight is None and config.method.name == "lotion" and "weight" not in config.method.settings:
            weight = (0.1, 10.0)
        out = self.out or Path("runs/tune") / default_name(self.preset, config)
        try:
            with Bar("tuning", self.trials) as bar:
                found = tune(config, out, self.trials, self.seeds, self.lr_range, weight, progress=bar.show)
        except ImportError as error:
            raise ImportError(f"tuning needs {error.name}: pip install 'lotion-theory[tune]'") from None
        except Stopped:
            raise KeyboardInterrupt from None
        path = out / "best.yaml"
        write_text(path, yaml_text(to_dict(found.config)))
        for trial in found.trials:
            settings = ", ".join(f"{name}={trial[name]:.3g}" for name in found.best)
            console.print(f"RTN loss {trial['value']:.4f}  {settings}", highlight=False, markup=False)
        print(f"lotion train --preset {self.preset} --config {shlex.quote(str(path))}")
        return 0


COMMAND = Tune
