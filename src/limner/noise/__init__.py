"""The formalism: levels on a path from data to noise, what a network predicts there, and the draws.

Everything rests on `x = alpha * x0 + sigma * eps`. Time runs one way: t = 0 is data, the far end is noise.
"""
