from vold_trainer.cli import main

main()
