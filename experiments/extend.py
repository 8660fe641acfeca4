"""Goes on with a finished run after its end: `python -m experiments.extend RUN --run-dir NEW [settings]`.

Settings are those of the run, but for what the flags say: `--methods` may name more of them,
`--schedule.finetune-steps` may be larger, and everything under `--eval` may change. What is trained already
is not trained again; the meta-test is repeated where it changes. More seeds: `experiments.merge`.
"""

import sys

from admrl_jax.commands.extend import extend_main

if __name__ == "__main__":
    sys.exit(extend_main("experiments.extend RUN", __doc__ or ""))
