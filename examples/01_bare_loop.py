# %% [markdown]
# # A balancer in a bare PyTorch loop
# Nothing but PyTorch and one line of Counterpoint: two tasks, one trunk, two heads, any optimizer.

# %%
import torch
from torch import nn

import counterpoint as cp

torch.manual_seed(0)
trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
depth_head, label_head = nn.Linear(32, 1), nn.Linear(32, 3)
parameters = [*trunk.parameters(), *depth_head.parameters(), *label_head.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=3e-3)

# %% [markdown]
# The data: both targets depend on the same inputs, the depth is on a scale a hundred times larger.

# %%
inputs = torch.randn(512, 16)
depth = 100 * inputs[:, :4].sum(dim=1, keepdim=True)
label = torch.bucketize(inputs[:, 2:8].sum(dim=1), torch.tensor([-1.0, 1.0]))

# %% [markdown]
# The balancer replaces `sum(losses).backward()`. It finds the shared parameters in the graph by itself.

# %%
balancer = cp.balancers.PCGrad(tasks=["depth", "label"])
for step in range(200):
    chosen = torch.randint(len(inputs), (64,))
    features = trunk(inputs[chosen])
    losses = {
        "depth": nn.functional.l1_loss(depth_head(features), depth[chosen]),
        "label": nn.functional.cross_entropy(label_head(features), label[chosen]),
    }
    optimizer.zero_grad()
    report = balancer.backward(losses)
    optimizer.step()
    if step % 50 == 0:
        cosine = cp.linalg.cosine(report.gram)[0, 1]
        print(f"step {step:3d}  cosine of the task gradients {cosine:+.2f}  {report.to_dict()['losses']}")

# %% [markdown]
# Which task wins is visible in the lengths of the gradients: depth pulls much harder than label.

# %%
print("gradient norms", cp.linalg.norms(report.gram).tolist())
