"""Tasks without labels in a batch: every way to say so, and that they take no part."""

import pytest
import torch

from counterpoint.balancers import Equal, GramBalancer, JacobianBalancer, PCGrad
from counterpoint.errors import ShapeError


class Gram(GramBalancer):
    key = "gram"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_state("count", torch.zeros(self.num_tasks))

    def solve(self, gram, losses, present):
        self.count[list(present)] += 1
        assert gram.shape == (len(present), len(present))
        assert losses.shape == (len(present),)
        return torch.tensor([1.0 + task for task in present], dtype=gram.dtype)


class Rows(JacobianBalancer):
    key = "rows"

    def aggregate(self, jacobian, losses, present):
        return torch.tensor([1.0 + task for task in present]) @ jacobian


def setting():
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    heads = [torch.ones(2, requires_grad=True) for _ in range(3)]
    return p, heads, [(p * head).sum() * (k + 1) for k, head in enumerate(heads)]


@pytest.mark.parametrize("balancer", [Equal, Gram, Rows])
@pytest.mark.parametrize("form", ["sequence", "mapping", "missing"])
def test_an_absent_task_takes_no_part(balancer, form):
    p, heads, losses = setting()
    given = {
        "sequence": [losses[0], None, losses[2]],
        "mapping": {"a": losses[0], "b": None, "c": losses[2]},
        "missing": {"c": losses[2], "a": losses[0]},
    }[form]
    names = None if form == "sequence" else ["a", "b", "c"]
    report = balancer(3, tasks=names).backward(given)
    weights = [1.0, 0.0, 3.0] if balancer is not Equal else [1.0, 0.0, 1.0]
    assert p.grad.tolist() == [weights[0] + 3 * weights[2]] * 2
    assert heads[1].grad is None
    assert heads[2].grad.tolist() == [3.0, 6.0]
    assert report.present.tolist() == [True, False, True]
    assert report.losses[[0, 2]].tolist() == [3.0, 9.0]
    assert torch.isnan(report.losses[1])
    if balancer is not Rows:
        assert report.weights.tolist() == weights
    if balancer is Gram:
        assert torch.isnan(report.gram[1]).all()
        assert torch.isnan(report.gram[:, 1]).all()
        assert report.gram[[0, 2]][:, [0, 2]].tolist() == [[2.0, 6.0], [6.0, 18.0]]
    assert list(report.to_dict()["losses"]) == ([*"ac"] if names else ["0", "2"])


def test_state_of_an_absent_task_does_not_move():
    balancer = Gram(3)
    for absent in (0, 1, 1, None):
        _, _, losses = setting()
        balancer.backward([None if k == absent else loss for k, loss in enumerate(losses)])
    assert balancer.count.tolist() == [3.0, 2.0, 4.0]


def test_names_are_learned_from_the_first_mapping_and_order_does_not_matter_later():
    balancer = Gram(3)
    _, _, (a, b, c) = setting()
    balancer.backward({"a": a, "b": b, "c": c})
    p, _, (a, b, c) = setting()
    report = balancer.backward({"c": c, "b": b, "a": a})
    assert report.tasks == ("a", "b", "c")
    assert report.losses.tolist() == [3.0, 6.0, 9.0]
    assert p.grad.tolist() == [1.0 + 2 * 2 + 3 * 3] * 2
    _, _, (_, b, _) = setting()
    assert balancer.backward({"b": b}).present.tolist() == [False, True, False]


def test_names_are_learned_with_an_absent_task_but_not_from_a_short_mapping():
    balancer = Gram(3)
    _, _, (a, b, _) = setting()
    with pytest.raises(ShapeError, match="tasks="):
        balancer.backward({"a": a, "b": b})
    assert balancer.backward({"a": a, "b": b, "c": None}).tasks == ("a", "b", "c")


def test_a_sequence_teaches_no_names():
    balancer = Gram(3)
    balancer.backward(setting()[2])
    assert balancer.get_extra_state()["tasks"] is None
    report = balancer.backward(dict(zip("xyz", setting()[2], strict=True)))
    assert report.tasks == ("x", "y", "z")
    assert balancer.backward(setting()[2]).tasks == ("x", "y", "z")


@pytest.mark.parametrize("balancer", [Equal, Gram, Rows, PCGrad])
@pytest.mark.parametrize("empty", [{}, {"a": None}, [None, None]])
def test_all_tasks_absent(balancer, empty):
    one = balancer(2, tasks=["a", "b"])
    report = one.backward(empty)
    assert report.present.tolist() == [False, False]
    assert torch.isnan(report.losses).all()
    assert report.num_backward == 0
    assert report.to_dict() == {"losses": {}, "num_backward": 0}
    if balancer is Gram:
        assert one.count.tolist() == [0.0, 0.0]


def test_one_task_left_is_its_plain_gradient_for_pcgrad():
    p, heads, losses = setting()
    PCGrad(3).backward([None, losses[1], None])
    assert p.grad.tolist() == [2.0, 2.0]
    assert heads[1].grad.tolist() == [2.0, 4.0]
