import os
import subprocess
import sys

from quantize import find_program


def main() -> int:
    command = [find_program(), *sys.argv[1:]]
    if os.name == "nt":
        # There is no exec: the child gets the Ctrl-C, and its exit code is handed on.
        child = subprocess.Popen(command)
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
