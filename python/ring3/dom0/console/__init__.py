"""The console daemon: takes what guests print, keeps a bounded log, and lets any number of readers attach.

It finds domains through xenstore (console/ring-ref and console/port in a domain's home). Nothing that a guest or reader
does makes it wait or grow without bound.
"""
