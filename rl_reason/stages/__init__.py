"""Ways of training, one file each. A config's stage section names one of these in its field `kind`.

A stage file has a dataclass `Config` (its section's fields, `start` among them), `check(config, context)`, which raises
before any stage runs for what could not work, `memory(config, context)`, what it will need (rl_reason.runtime.memory),
`trained(config, context) -> Trained`, the shapes of what it trains, and `build(config, context, params, name) -> Stage`,
params being the policy that it starts from. One whose model can score
has `make_scorer(config, context, name) -> Scorer`, for learned rewards.
"""
