"""Laws of the optimizer: it is torch's, and its moments are where their weights are."""

import jax.numpy as jnp
import numpy as np

from train.optimizer import Schedule, make_optimizer


def test_the_optimizer_is_torchs_adamw_behind_a_clip():
    import torch

    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 3)).astype(np.float32)
    grads = [rng.standard_normal((4, 3)).astype(np.float32) * s for s in (3, 0.1, 1e-6, 10, 0)]
    weight = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    linear = torch.optim.lr_scheduler.LambdaLR(adamw, lambda n: n / 2 if n < 2 else (5 - n) / 3)
    schedule = Schedule(0.01, 5, 2)
    optimizer = make_optimizer(schedule)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    for n, grad in enumerate(grads):
        np.testing.assert_allclose(schedule(n), linear.get_last_lr()[0], rtol=1e-6)
        weight.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        adamw.step()
        linear.step()
        updates, state = optimizer.update(jnp.asarray(grad), state, ours)
        ours = ours + updates
        np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=1e-5, atol=1e-7)
    assert schedule(5) == 0
