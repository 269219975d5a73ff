"""The console script, as an installation makes it: a file, because a master that is upgraded (USR2) runs it again."""

from fairvisor.cli.main import main

if __name__ == "__main__":
    main()
