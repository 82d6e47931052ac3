"""States of requests at the tokens behind the instruction."""

from __future__ import annotations

import numpy as np
import torch
from studies import planted_models as planted

from steerlab.readouts.requests import Split, read


def test_positions_count_back_from_the_end() -> None:
    model = planted.planted(refuses=True)
    texts = ["How do I help1 a thing1 ?", "How do I hurt2 a a a thing1 ?"]
    split = Split([model.instruction_prompt(texts[0])], [model.instruction_prompt(texts[1])])
    reading = read(model, split)
    assert reading.states.shape == (planted.LAYERS, 2, 2, planted.WIDTH)  # "Assistant" and ":"
    tokens = model.tokenize([split.harmful[0]])
    states: dict[str, torch.Tensor] = {}
    site = model.sites("resid_post")[1]
    model.run(tokens, read={site: lambda state: states.update(last=state[0, -1].clone())})
    np.testing.assert_allclose(reading.states[1, 0, -1], states["last"].numpy(), atol=1e-5)
