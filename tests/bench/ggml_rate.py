"""Million weights per CPU-second of ggml's own quantizer (`ggml_quantize_chunk`), one thread, on input like that of quant.rs.

usage: ggml_rate.py FOLDER_OF_LIBGGML [TYPE,...|all]     (needs numpy; the output is what `quant -- table all FILE` reads)
"""
import ctypes
import glob
import os
import sys
import time

import numpy as np

TYPES = dict(F16=1, Q4_0=2, Q4_1=3, Q5_0=6, Q5_1=7, Q8_0=8, Q2_K=10, Q3_K=11, Q4_K=12, Q5_K=13, Q6_K=14, IQ2_XXS=16, IQ2_XS=17,
             IQ3_XXS=18, IQ1_S=19, IQ4_NL=20, IQ3_S=21, IQ2_S=22, IQ4_XS=23, IQ1_M=29, BF16=30, TQ1_0=34, TQ2_0=35, MXFP4=39,
             NVFP4=40, Q1_0=41, Q2_0=42)
COLS, ROWS = 2048, 64
folder = sys.argv[1]
wanted = sys.argv[2].upper().split(",") if len(sys.argv) > 2 and sys.argv[2] != "all" else list(TYPES)
lib = ctypes.CDLL(sorted(glob.glob(os.path.join(folder, "libggml-base.so*")))[0])
lib.ggml_quantize_chunk.restype = ctypes.c_size_t
lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
lib.ggml_quantize_init.argtypes = [ctypes.c_int]
weights = (0.02 * np.random.default_rng(1).standard_normal((ROWS, COLS))).astype(np.float32)
importance = np.array([0.1 + (i * 7919 % 101) / 50 for i in range(COLS)], np.float32)
out = np.zeros(ROWS * COLS * 4 + 64, np.uint8)
for name in wanted:
    ty = TYPES[name]
    lib.ggml_quantize_init(ty)
    for kind in ("plain", "imatrix"):
        if kind == "plain" and name in ("IQ2_XXS", "IQ2_XS", "IQ1_S") or kind == "imatrix" and name in ("F16", "BF16"):
            continue
        pointer = importance.ctypes.data if kind == "imatrix" else None
        rows, best = 4 if name.startswith("IQ") else ROWS, 0
        for _ in range(3):
            start, done, spent = time.thread_time(), 0, 0
            while spent < 0.02 or done < 4e6 and spent < 1:
                # Reading the clock costs something too.
                for _ in range(1 if rows == 4 else 8):
                    lib.ggml_quantize_chunk(ty, weights.ctypes.data, out.ctypes.data, 0, rows, COLS, pointer)
                    done += rows * COLS
                spent = time.thread_time() - start
            best = max(best, done / spent / 1e6)
        print(f"{name:8} {kind:8} {best:9.2f}", flush=True)
