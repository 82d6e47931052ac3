"""What was done to these weights: a candidate held against its base, tensor by tensor, without a forward pass."""

from steerlab.auditing.auditor import audit
from steerlab.auditing.result import AuditResult, Kind, Lineage, MatrixChange

__all__ = ["AuditResult", "Kind", "Lineage", "MatrixChange", "audit"]
