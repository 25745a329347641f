"""On-device scaling laws: how loss depends on size, tokens and the shape of the experts; fitted, and planned with.

from mobilemoe.scaling import fit, read_runs
found = fit(read_runs("runs.csv"), "joint", bootstraps=4000)
print(found.law.parameters, found.rmse)

from mobilemoe.profile.device import device
from mobilemoe.scaling import Constraints, plan
best = plan(Constraints(memory=1e9, decode=40, train_flops=8e20), device=device("galaxy-s25")).candidates[0]
print(best.config, best.loss)
"""

from mobilemoe.scaling.law.fit import Fit, fit
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.law.read_runs import read_runs
from mobilemoe.scaling.law.runs import Points, Runs
from mobilemoe.scaling.plan.limits import Constraints
from mobilemoe.scaling.plan.plan import Plan, plan
from mobilemoe.scaling.plan.space import Space

__all__ = ["Constraints", "Fit", "Law", "Plan", "Points", "Runs", "Space", "fit", "plan", "published", "read_runs"]
