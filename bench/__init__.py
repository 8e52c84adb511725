"""The measurements that the README and docs/ quote; run each as `python -m bench.NAME` in this folder."""
