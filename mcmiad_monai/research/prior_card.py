"""A page beside a text prior that tells others what it is, so that they need no CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcmiad_monai.files.writing import write_text
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.provenance import produced_with

#: Licence and limits of OpenAI's weights.
OPENAI = (
    " OpenAI publishes the code and weights of CLIP under the MIT licence. Its model card calls "
    "any deployed use out of scope, and advises against other use without thorough testing in the "
    "domain."
)
CARD = """\
# Text prior

Embeddings of {count} descriptions of normal anatomy ({dim} numbers each), made once with the text
encoder below. Training and inference with this file need neither CLIP nor its weights.

| | |
|---|---|
| file | `{file}` |
| encoder | {encoder} |
| weights | {weights} |
| SHA-256 of the embeddings | `{digest}` |
| made with | {versions} |

## Use

```sh
mcmiad train --text-prior {file} …
mcmiad reproduce --text-prior {file} …
```

```python
from mcmiad_monai.networks.text_prior import TextPrior

prior = TextPrior.load("{file}")
```

## Prompts

{prompts}

## Licence

The embeddings are derived from the weights named above, whose licence applies to them: read it
before you pass the file on.{licence}
This file is for research. It is no medical device.
"""


def write_prior(prior: TextPrior, path: str | Path) -> Path:
    """Write a prior and, beside it, its card; the card's path.

    Parameters
    ----------
    path : path
        The safetensors file; the card has the same name and the suffix ``.md``.
    """
    file = Path(path)
    prior.save(file)
    card = file.with_suffix(".md")
    write_text(card, prior_card(prior, file.name, produced_with()))
    return card


def prior_card(prior: TextPrior, file: str, produced: Mapping[str, Any]) -> str:
    """The card of a prior, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in produced["software"].items())
    return CARD.format(
        count=len(prior.prompts),
        dim=prior.embeddings.shape[1],
        file=file,
        encoder=prior.encoder,
        weights=prior.weights,
        digest=prior.provenance["embeddings_sha256"],
        versions=f"{versions}; revision {produced['git_revision']}",
        prompts="\n".join(f"{number}. {text}" for number, text in enumerate(prior.prompts, 1)),
        licence=OPENAI if "/openai," in prior.weights else "",
    )
