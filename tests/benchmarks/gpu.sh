#!/usr/bin/env bash
# Everything that is to be known of a GPU, in at most eight minutes: the tests marked gpu, the time of a training step
# beside the dense LSTM's, and BTLSTM against torch.nn.LSTM by cuDNN.
#
#     tests/benchmarks/gpu.sh
#
# Needs one CUDA device, the package's dependencies and pytest, and no network. PYTHON names the interpreter (python3),
# OUT a folder for logs and scratch files (a temporary one). The last lines are JSON, one for each part. Exits with 1 if
# a part failed, and with 2 where there is no CUDA device. BTCOMPRESS_GPU_TESTS_ON=cpu tries it without one, on small
# sizes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
PYTHON=${PYTHON:-python3}
export BTCOMPRESS_GPU_TESTS_ON=${BTCOMPRESS_GPU_TESTS_ON:-cuda}

found=$(timeout -k 5 50 "$PYTHON" -c '
import os, torch
on_cpu = os.environ["BTCOMPRESS_GPU_TESTS_ON"] == "cpu"
print(torch.__version__)
print("cpu" if on_cpu else torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
if [ $? -eq 124 ]; then
    echo "torch did not say within 50 s whether there is a CUDA device. Run this again, now that its files are cached."
    exit 1
fi
{ read -r torch; read -r card; } <<<"$found"
if [ -z "$card" ]; then
    echo "There is no CUDA device here that torch can use. BTCOMPRESS_GPU_TESTS_ON=cpu tries this script without one."
    exit 2
fi
if [ -z "${OUT:-}" ]; then
    OUT=$(mktemp -d)
    trap 'rm -rf "$OUT"' EXIT
fi
mkdir -p "$OUT" || exit 1
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
: >"$OUT/parts"
failed=0

# part NAME SECONDS COMMAND...: run within so many seconds, and go on whatever comes of it
part() {
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    echo "== $name, at most $limit s"
    timeout -k 5 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || failed=1
    echo "$name $((SECONDS - began)) $code" >>"$OUT/parts"
}

small=()
[ "$BTCOMPRESS_GPU_TESTS_ON" = cuda ] || small=(--small)
# Warnings are told, not failed on: those of a driver or of a version of torch are none of these tests' business. Only
# that of cuDNN about weights not in one piece of memory is an error, in the tests and beside the LSTMs that are timed.
part tests 230 "$PYTHON" -m pytest tests/test_gpu.py -m gpu -v -W default -p no:cacheprovider --basetemp "$OUT/tests" \
    --durations 10
part step_cost 85 "$PYTHON" tests/benchmarks/step_cost.py --device "$BTCOMPRESS_GPU_TESTS_ON" "${small[@]}"
part lstm_speed 75 "$PYTHON" tests/benchmarks/lstm_speed.py --device "$BTCOMPRESS_GPU_TESTS_ON" --seconds 0.3 --within 60 \
    --table "${small[@]}"

timeout -k 5 10 "$PYTHON" - "$OUT" "$card" "$torch" "${driver:-none}" <<'END' || failed=1
import json
import re
import sys
from collections import Counter
from pathlib import Path

folder, card, torch, driver = sys.argv[1:]
for part in Path(folder, "parts").read_text().splitlines():
    name, seconds, code = part.split()
    lines = Path(folder, f"{name}.log").read_text(errors="replace").splitlines()
    figures = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    if name == "tests":
        ends = [match.groups() for line in lines if (match := re.match(r"(tests/.+?) (PASSED|FAILED|ERROR|SKIPPED)", line))]
        figures = {end.lower(): count for end, count in Counter(end for _, end in ends).items()}
        figures["not passed"] = [test for test, end in ends if end in ("FAILED", "ERROR")]
    row = {"name": name, "seconds": int(seconds), "ok": code == "0", "exit_code": int(code), "figures": figures}
    print(json.dumps({**row, "card": card, "torch": torch, "driver": driver}))
END
exit "$failed"
