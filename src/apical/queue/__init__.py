"""Lists of runs that are worked off piece by piece: a line at a time, for minutes at a time, by one process or several.

A queue's folder holds, for each line of its list, by a name that the line's words make:

- NAME/: the folder of the run, comparison or experiment;
- NAME.log: what its command has said;
- NAME.json: that it has ended, and how.

So a line that is moved in the list keeps what it has, and one that is changed starts anew.
"""
