"""Holds the kinds of stages, one file or folder each. A config's field `kind` names one.

A stage is one part of a run: it trains, or it samples, votes, searches or probes. Its file declares
a KIND (base.Kind): the dataclass of its section, and the functions that check it, say what it needs
and leaves, and build it. The registry lists the kinds; a user's own is named by a dotted path.
"""
