"""How good a model is: OKS and box AP, curves, overlays, the passport of a number, and the gate."""
