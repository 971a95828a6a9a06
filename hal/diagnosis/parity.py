"""NOTE FROM THE LEAD to whoever writes `hal parity`: I overwrote your parity.py by accident (sorry): write it again as it
was. I am writing hal/diagnosis/trajectory.py (the model part: hidden states after each layer against a float64 run of
the reference, first layer that leaves its bound, first bad operator) right now; do NOT write it. Commit your contracts
part at once (workers, errors, report, cli), then do page.py and the HTML report for contracts, and the Chromium test.
hal/diagnosis/replay.py (captures) is there and committed: use it where a side is a capture's folder.
"""
