"""Samples: params + prompts + rng -> completions and their log-probabilities.

In the order of reading:

    sampling.py          how tokens are drawn: temperature, filters, stop strings
    sampler.py           one way to sample, for every caller: prompts -> completions -> samples
    generate.py          prompts -> completions, in one call: prefill, then decoding in slots
    schedule.py          which prompt gets which slot, and how many fit
    prefill.py           reads the prompts, each once for its group
    decode.py            draws tokens for all slots, in chunks without the host
    pages.py             keeps keys and values in pages instead of one stretch per slot
    episodes.py          several turns with an environment that answers
    samples.py           completions -> the samples that rewards read
    record.py            a rollout with its rewards, as a checkpoint keeps it
    texts.py             prompts -> texts, for whoever wants a policy as a function
    memory.py            what sampling will hold in memory
"""
