"""Makes one reward of several: weights, gates, transforms, trust and monitors."""
