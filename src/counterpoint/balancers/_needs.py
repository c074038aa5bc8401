"""What a balancer can ask of the training loop besides the losses of a batch."""

NEEDS: dict[str, str] = {
    "epochs": "end_epoch() after each epoch",
    "metrics": "observe_metrics(values) with the primary metrics after each validation",
}
