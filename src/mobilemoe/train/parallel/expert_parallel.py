"""Expert parallelism: each process of a group holds some of the experts, and tokens are sent to them and back.

N tokens, D hidden, E experts, A active experts per token, G processes of a group, L = E / G experts of each,
P = N A (token, expert) pairs of this process, R pairs that it receives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.placement_types import Shard

from mobilemoe.model.experts import Experts, in_token_order, load_of


class ParallelExperts(Experts):
    """Experts split evenly over the processes of `mesh`, in order; no token is dropped.

    Each layer waits for the device once, to learn how many pairs each process sends.
    """

    def __init__(self, experts: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)  # not that of Experts, which would make new weights
        self.group, self.processes, self.capacity_factor = mesh.get_group(), mesh.size(), None
        self.experts = experts.gate_up_proj.shape[0]
        # Every process has all weights, so each takes its part and nothing is sent.
        for name, weight in experts.named_parameters():
            part = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
            self.register_parameter(name, nn.Parameter(part))

    def weights(self) -> tuple[Tensor, Tensor]:
        """gate_up_LD2F and down_LFD: those of this process."""
        gate_up, down = self.gate_up_proj, self.down_proj
        assert isinstance(gate_up, DTensor)
        assert isinstance(down, DTensor)
        return gate_up.to_local(), down.to_local()

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor) -> Tensor:
        active, group = experts_NA.shape[1], self.group
        order_P = experts_NA.flatten().argsort(stable=True)
        sent_E = load_of(experts_NA, self.experts)
        received_GL = all_to_all_single(sent_E, None, None, group).view(self.processes, -1)
        sent_G = sent_E.view(self.processes, -1).sum(1)
        sent, received = torch.stack([sent_G, received_GL.sum(1)]).tolist()
        x_RD = all_to_all_single_autograd(x_ND.index_select(0, order_P // active), received, sent, group)
        # What came from one process is sorted by expert.
        local_L = torch.arange(received_GL.shape[1], device=x_ND.device)
        expert_R = local_L.repeat(self.processes).repeat_interleave(received_GL.flatten(), output_size=len(x_RD))
        y_RD = super().forward(x_RD, expert_R.unsqueeze(1), torch.ones_like(expert_R, dtype=x_RD.dtype).unsqueeze(1))
        y_PD = all_to_all_single_autograd(y_RD, sent, received, group)
        y_NAD = in_token_order(y_PD, order_P, active)
        y_ND: Tensor = (y_NAD * weights_NA.to(y_NAD.dtype).unsqueeze(-1)).sum(1)
        return y_ND
