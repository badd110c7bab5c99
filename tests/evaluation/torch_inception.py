"""Writes the fixture `inception.npz`: features of torchvision's InceptionV3 with FID's pooling and random weights.

    python -m tests.evaluation.torch_inception        (needs PyTorch and torchvision, unlike the tests)

The tests draw the same weights and compare the features of our network with these.
"""

import pathlib

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / "inception.npz"
SIDE = 107  # small maps, some with odd height and width


def draw_weights(shapes, seed=0):
    """Draws tensors by name, scaled to keep activations in range. `shapes` maps names to shapes, in any order."""
    rng = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape, kind = shapes[name], name.split(".")[-2:]
        if kind == ["conv", "weight"]:
            value = rng.normal(0.0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
        elif kind[1] in ("weight", "running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0.0, 0.1, shape)
        state[name] = value.astype(np.float32)
    return state


def draw_images(count, side, seed=1):
    """Draws smooth images with noise, uint8, [count, side, side, 3]."""
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (a * i + b * j + c)) for a, b, c in rng.uniform(-3, 3, (count * 3, 3))]
    smooth = np.stack(waves).reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    return np.clip(127.5 * (1 + smooth) + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)


def main():
    import torch
    import torchvision
    from torch.nn import functional as F
    from torchvision.models import inception as blocks

    def pools(net):
        """Patches the pooling to that of FID's network: averages without the padding, max pooling in the last block."""
        plain_average = F.avg_pool2d

        def average(h, kernel_size, stride, padding):
            return plain_average(h, kernel_size, stride, padding, count_include_pad=False)

        def maximum(h, kernel_size, stride, padding):
            return F.max_pool2d(h, kernel_size, stride, padding)

        for name, module in net.named_children():
            if isinstance(module, blocks.InceptionA | blocks.InceptionC | blocks.InceptionE):
                pool = maximum if name == "Mixed_7c" else average
                forward = module._forward

                def patched(h, forward=forward, pool=pool):
                    F.avg_pool2d = pool
                    try:
                        return forward(h)
                    finally:
                        F.avg_pool2d = plain_average

                module._forward = patched

    net = torchvision.models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    )
    names = [n for n in net.state_dict() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")]
    state = draw_weights({name: tuple(net.state_dict()[name].shape) for name in names})
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    net.transform_input = False
    net.fc = torch.nn.Identity()
    pools(net)
    net = net.eval().double()

    @torch.no_grad()
    def features(x):
        return net(x).numpy()

    small = torch.tensor(draw_images(3, SIDE).transpose(0, 3, 1, 2)).double() / 255.0
    tiny = torch.tensor(draw_images(1, 32).transpose(0, 3, 1, 2)).double() / 255.0
    resized = F.interpolate(tiny, size=(299, 299), mode="bilinear", align_corners=False)
    shapes = {name: np.array(value.shape) for name, value in state.items()}
    np.savez_compressed(
        FIXTURE,
        features=features(2 * small - 1)[:, ::16],
        from_32_pixels=features(2 * resized - 1)[:, ::16],
        names=np.array(sorted(shapes)),
        total=sum(value.size for value in state.values()),
    )


if __name__ == "__main__":
    main()
