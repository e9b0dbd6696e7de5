# SPDX-License-Identifier: Apache-2.0
"""What a call from Python costs beside its kernel: overhead.py. Thread CPU time, one thread, no gradients, the least of nine.

The kernel has next to nothing to do in these calls (8 heads of one token, 8 features), so that nearly all is overhead.
"""
import time

import torch

import performer


def least(call, repeats=3000):
    for _ in range(100):
        call()
    best = float("inf")
    for _ in range(9):
        start = time.thread_time()
        for _ in range(repeats):
            call()
        best = min(best, (time.thread_time() - start) / repeats)
    return best * 1e6


def main():
    torch.set_num_threads(1)
    q = torch.randn(1, 8, 1, 8)
    described = performer.FeatureMap(features=8)
    w, t = described.draw(8, 8), q.transpose(1, 2)
    ops = torch.ops.performer
    calls = {
        "performer.favor_attention": lambda: performer.favor_attention(q, q, q, features=described),
        "operator mapped_attention": lambda: ops.mapped_attention(t, t, t, "favor+", 8, "auto", "chi", -1, w),
        "operator favor_attention": lambda: ops.favor_attention(t, t, t, w),
        "F.scaled_dot_product_attention": lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q),
    }
    with torch.no_grad():
        for name, call in calls.items():
            print(f"{name:32} {least(call):6.1f} us")


if __name__ == "__main__":
    main()
