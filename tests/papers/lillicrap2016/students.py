"""What networks that learn by the paper's equations, in NumPy, come to beside `Students`."""

import numpy as np

from apical.papers.lillicrap2016.online import Students

SEEDS, RATE, STEPS = (3, 8), 0.05, 4


def arrays(students, name):
    """The networks' weights, biases and feedback at a layer, as NumPy: [(W, b, B)] by network."""
    synapse, n = students.learner.synapses[name], students.n
    parts = [synapse.weight, synapse.bias, synapse.feedback]
    own = [[None] * n if p is None else [t.detach().numpy().astype(float).copy() for t in p.chunk(n)] for p in parts]
    return list(zip(*own, strict=True))


def by_hand(layers, rule, examples, f, frozen=()):
    """Online descent on (1/2) e^T e. layers: [W, b, B]; f: (activation, derivative by the activity), linear on top."""
    act, slope = f
    for x, y in examples:
        h = [x]
        for place, (W, b, _) in enumerate(layers):
            a = W @ h[-1] + (0 if b is None else b)
            h.append(a if place == len(layers) - 1 else act(a))
        delta = h[-1] - y
        for place in reversed(range(len(layers))):
            W, b, B = layers[place]
            if rule == "shallow" and place < len(layers) - 1:
                break
            back = None if place == 0 else ({"fa": B, "bp": W}.get(rule, W).T @ delta) * slope(h[place])
            if str(2 * place if f is TANH else place) not in frozen:
                layers[place][0] = W - RATE * np.outer(delta, h[place])
                if b is not None:
                    layers[place][1] = b - RATE * delta
            delta = back
    return layers


IDENTITY = (lambda a: a, lambda h: np.ones_like(h))


TANH = (np.tanh, lambda h: 1 - h**2)


def trained(build, rule, pairs, frozen=()):
    """Students before and after, and what the equations make of the former."""
    students = Students(build, rule, SEEDS, inputs=pairs.inputs, rate=RATE, frozen=frozen)
    names = list(students.learner.synapses)
    before = [[list(arrays(students, name)[place]) for name in names] for place in range(students.n)]
    for step in range(STEPS):
        students.learn(*pairs(step))
    after = [[list(arrays(students, name)[place]) for name in names] for place in range(students.n)]
    return before, after
