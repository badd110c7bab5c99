"""Classes as contexts."""

from flax import linen as nn
from jaxtyping import Array, Float, Int

Labels = Int[Array, "batch"]
OneToken = Float[Array, "batch 1 width"]


class ClassEmbedding(nn.Module):
    """A context of one learned token per class.

    Attributes:
        classes: how many there are; a network for guidance has one more, which stands for none of them.
        width: of the token.
    """

    classes: int
    width: int

    @nn.compact
    def __call__(self, labels: Labels) -> OneToken:
        table = nn.Embed(self.classes, self.width, embedding_init=nn.initializers.normal(1.0), name="table")
        return table(labels)[:, None, :]
