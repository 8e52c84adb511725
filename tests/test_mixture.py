"""The mixture of experts: proper probabilities, what it comes down to, where gradients go, how experts specialise."""

import math

import pytest
import torch
from torch import nn

from losses import CrossEntropy
from model import NETWORKS, Expert, FaceNet, MixtureOfExperts, build_model

COUNTS = (3995, 436, 4097, 7215, 4830, 3171, 4965)
ALL = tuple(range(7))
GROUPINGS = {
    "one of all": [ALL],
    "parts": [(0, 1, 2), (3, 5), (4, 6)],
    "single classes": [(c,) for c in ALL],
    "overlapping": [(0, 2, 4), (2, 5), (4, 6), (1, 3, 6, 0)],
    "all and a part": [ALL, (2, 4)],
    "all twice": [ALL, ALL],
}


def mixture(groups, **arguments):
    torch.manual_seed(0)
    arguments = {"network": "EmotionResNet-nano", "gate": "EmotionResNet-nano", "counts": COUNTS, **arguments}
    return MixtureOfExperts(groups=groups, **arguments)


def images(count=6):
    return torch.randn(count, 1, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("groups", GROUPINGS.values(), ids=GROUPINGS)
@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_probabilities_sum_to_1(groups, top_k):
    model = mixture(groups, top_k=min(top_k, len(groups))).eval()
    log_p = model(images())
    assert log_p.isfinite().all() and log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(log_p.log_softmax(1), log_p, atol=1e-5, rtol=0)  # logits whose softmax is themselves
    log_gate, experts, _ = model.look(images())
    torch.testing.assert_close(log_gate.exp().sum(1), torch.ones(6))
    torch.testing.assert_close(experts.exp().sum(2), torch.ones(6, len(groups)))
    used = min(top_k, len(groups)) if top_k else len(groups)
    assert bool(((log_gate > -torch.inf).sum(1) == used).all())
    torch.testing.assert_close(log_p.exp(), (log_gate.exp()[:, :, None] * experts.exp()).sum(1), atol=1e-6, rtol=1e-4)


def test_one_expert_for_all_is_that_expert_exactly():
    model = mixture([ALL]).eval()
    assert model.gate is None and torch.equal(model(images()), model.experts[0](images()))
    assert torch.equal(model(images()), model.experts[0].net(images()).log_softmax(1))


def test_an_expert_shares_what_is_not_its_own_by_the_training_images():
    expert = Expert(network="EmotionResNet-nano", group=(4, 2), counts=COUNTS).eval()
    own = expert.net(images()).softmax(1)
    assert own.shape == (6, 3)
    p = expert(images()).exp()
    torch.testing.assert_close(p[:, [2, 4]], own[:, :2])
    others = [0, 1, 3, 5, 6]
    shares = torch.tensor([float(COUNTS[c]) for c in others])
    torch.testing.assert_close(p[:, others], own[:, 2:] * shares / shares.sum())


def test_loss_and_gradients_are_finite_where_the_chosen_expert_lacks_the_true_class():
    model = mixture([(0, 1, 2), (3, 4, 5, 6)], top_k=1)
    with torch.no_grad():
        model.gate.classifier.bias.copy_(torch.tensor([50.0, -50.0]))  # always the first
    for parameter in model.experts[0].classifier.parameters():
        nn.init.constant_(parameter, 30.0 if parameter.ndim == 1 else 0.0)
    with torch.no_grad():
        model.experts[0].classifier.bias[-1] = -60.0  # which is sure that the image is its own
    loss = CrossEntropy()(model(images()), torch.tensor([3, 4, 5, 6, 3, 4]))
    loss.backward()
    assert 80 < loss.item() < 110
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.experts[0].classifier.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("top_k", [0, 2])
def test_gradients_reach_gate_and_experts(top_k):
    model = mixture(GROUPINGS["overlapping"], top_k=top_k)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # blocks pass nothing on at first
            if "residual" in name and parameter.ndim == 1:
                parameter.fill_(0.5)
    CrossEntropy()(model(images(64)), torch.arange(64) % 7).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_the_balance_is_the_squared_variation_of_the_load():
    model, quiet = mixture([ALL, ALL, (0, 3)], balance=0.5), mixture([ALL, ALL])
    model(images()), quiet(images())
    assert model.penalty.requires_grad and quiet.penalty is None
    with torch.no_grad():
        model.gate.classifier.weight.zero_()
        model.gate.classifier.bias.copy_(torch.tensor([0.0, 0.0, math.log(2.0)]))
        model(images())
    load = torch.tensor([0.25, 0.25, 0.5])
    assert model.penalty.item() == pytest.approx(0.5 * float(load.var(correction=0) / load.mean() ** 2), rel=1e-4)


def test_frozen_parts_keep_weights_and_statistics():
    model = mixture(GROUPINGS["parts"])
    model.freeze(model.experts)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    CrossEntropy()(model(images()), torch.arange(6)).backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"gate"} and model.gate.training and not model.experts.training
    model.freeze()
    assert model.experts.training and all(p.requires_grad for p in model.parameters())


def test_a_mixture_takes_the_sizes_that_its_networks_take():
    groups, small = [(0, 1, 2, 3), (4, 5, 6)], torch.zeros(2, 1, 40, 40)
    assert mixture(groups).eval()(small).shape == (2, 7)
    with pytest.raises(ValueError, match=r"MixtureOfExperts takes images of shape \(B, 1, 48, 48\)"):
        mixture(groups, network="ImprovedFER2013Model").eval()(small)


def test_features_are_the_experts_times_their_weights():
    model = mixture(GROUPINGS["parts"]).eval()
    log_gate, _, _ = model.look(images())
    features = model.features(images())
    assert features.shape == (6, 3 * 128)
    for at, expert in enumerate(model.experts):
        own = features[:, 128 * at : 128 * (at + 1)]
        torch.testing.assert_close(own, expert.features(images()) * log_gate.exp()[:, at : at + 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": [(0, 1), (2, 3)]}, r"no expert covers the classes \[4, 5, 6\]"),
        ({"groups": [ALL, (0, 0)]}, r"group \[0, 0\]: one or more"),
        ({"groups": [ALL, (1,)], "counts": (5, 5, 0, 5, 5, 5, 5)}, r"the classes \[2\], outside the group, have no"),
        ({"groups": [ALL, ALL], "top_k": 3}, "top_k 3, balance 0.0: 0 to 2"),
        ({"groups": [ALL], "network": "vgg"}, "model: 'vgg' is not one of"),
    ],
)
def test_what_makes_no_mixture_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mixture(**arguments)


def linear(*seen):
    """A kind of network: a linear layer over the pixels `seen` of the first row, quick enough for a toy problem."""

    class Linear(FaceNet):
        def __init__(self, *, num_classes, image_size=48, channels=1, dropout=0.0):
            super().__init__(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
            self.classifier = nn.Linear(len(seen), num_classes)

        def features(self, images):
            return images[:, 0, 0, list(seen)]

    return Linear


def toy(count):
    """Images of seven classes on a ring: pixels 0 and 1 tell the place, pixel 2 which way round the classes go.

    Either way alone, a linear layer tells the classes by their place; for both ways no single one can.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (count,), generator=generator)
    code = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    angle = 2 * math.pi * labels / 7 * code
    faces = torch.zeros(count, 1, 48, 48)
    faces[:, 0, 0, 0], faces[:, 0, 0, 1], faces[:, 0, 0, 2] = angle.cos(), angle.sin(), code.float()
    return faces, labels, code


@pytest.mark.parametrize("seed", range(2))
def test_where_experts_must_specialise_they_do(monkeypatch, seed):
    for name, seen in (("Pixels", (0, 1, 2)), ("Place", (0, 1)), ("Code", (2,))):
        monkeypatch.setitem(NETWORKS, name, linear(*seen))
    faces, labels, code = toy(500)

    def accuracy(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            CrossEntropy()(model(faces), labels).backward()
            optimizer.step()
        return float((model(faces).argmax(1) == labels).float().mean())

    torch.manual_seed(seed)
    assert accuracy(build_model("Place", num_classes=7)) < 0.65
    assert accuracy(build_model("Pixels", num_classes=7)) < 0.8
    model = MixtureOfExperts(network="Place", gate="Code", groups=[ALL, ALL], counts=[1] * 7)
    assert accuracy(model) > 0.99
    weights = model.look(faces)[0].exp()[:, 0]
    sure = weights.where(code > 0, 1 - weights).mean().item()
    assert max(sure, 1 - sure) > 0.98  # each way has its expert
