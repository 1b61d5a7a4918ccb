"""The formalism: levels on a path from data to noise, what a network predicts there, and the draws.

The forward process is `x = alpha * x0 + sigma * eps`. Time runs one way: t = 0 is data, the far end is noise.
"""
