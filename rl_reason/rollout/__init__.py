"""Samples completions: params + prompts + rng -> completions and their log-probabilities.

The files, in the order of reading:

    sampling.py          how tokens are drawn: temperature, filters, stop strings
    sampler.py           one way to sample, for every caller: prompts -> completions -> samples
    generate.py          prompts -> completions, in one call: prefill, then decoding in slots
    schedule.py          which prompt gets which slot, and how many fit
    prefill.py           reads the prompts, each once for its group
    decode.py            draws tokens for all slots, in chunks that need no host
    pages.py             keeps keys and values in pages instead of one stretch per slot
    environment.py       who answers a policy's turns: the protocol, and a short form without state
    asking.py            asks the environments of all running episodes at once
    episodes.py          several turns of a policy and its environment's answers
    samples.py           completions -> the samples that rewards read
    record.py            a rollout with its rewards, as a checkpoint keeps it
    texts.py             prompts -> texts, for callers that want a policy as a function
    memory.py            estimates what sampling holds in memory
"""
