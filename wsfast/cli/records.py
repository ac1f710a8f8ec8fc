"""What a localized picture is in results.json and results.jsonl."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def picture_record(
    size: tuple[int, int],
    logits: Tensor,
    boxes: Tensor,
    scores: Tensor,
    count: int,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Prediction and boxes as JSON-ready values.

    Args:
        size: height and width in pixels.
        logits: (K,); where they are not finite the class is null, as JSON knows no NaN.
        boxes: (B, 4) half-open pixels, without padding.
        scores: (B,) in 0-1.
        count: components in all.
        class_names: one per class, or none.

    Example:
        >>> import torch
        >>> record = picture_record(
        ...     (4, 6), torch.tensor([0.0, 3.0]), torch.tensor([[0, 1, 2, 3]]),
        ...     torch.tensor([0.5]), 1, ("good", "defect"))
        >>> record["predicted_name"], record["boxes"]
        ('defect', [{'box': [0, 1, 2, 3], 'score': 0.5}])
    """
    known = bool(logits.isfinite().all())
    probabilities = logits.float().softmax(0)
    predicted = int(probabilities.argmax())
    name = class_names[predicted] if class_names else str(predicted)
    return {
        "height": size[0],
        "width": size[1],
        "predicted_class": predicted if known else None,
        "predicted_name": name if known else None,
        "probability": round(float(probabilities[predicted]), 6) if known else None,
        "components": count,
        "boxes": [
            {"box": box, "score": round(score, 6)}
            for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ],
    }
