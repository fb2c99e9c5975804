"""The works to cite for each rule."""

from __future__ import annotations

CITATIONS: dict[str, str] = {
    "rumelhart1986": "Rumelhart, Hinton, Williams. Learning representations by back-propagating errors. Nature 323, 1986.",
    "kolen1994": "Kolen, Pollack. Backpropagation without weight transport. IEEE ICNN, 1994.",
    "lillicrap2016": "Lillicrap, Cownden, Tweed, Akerman. Random synaptic feedback weights support error backpropagation for "
    "deep learning. Nature Communications 7:13276, 2016.",
    "liao2016": "Liao, Leibo, Poggio. How important is weight symmetry in backpropagation? AAAI, 2016.",
    "nokland2016": "Nøkland. Direct feedback alignment provides learning in deep neural networks. NeurIPS, 2016.",
    "akrout2019": "Akrout, Wilson, Humphreys, Lillicrap, Tweed. Deep learning without weight transport. NeurIPS, 2019.",
    "amit2019": "Amit. Deep learning with asymmetric connections and Hebbian updates. Frontiers in Computational Neuroscience "
    "13:18, 2019.",
    "lansdell2020": "Lansdell, Prakash, Kording. Learning to solve the credit assignment problem. ICLR, 2020.",
}
