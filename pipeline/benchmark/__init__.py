"""What a machine yields: plain loops, the engine alone and the whole command on the same pictures.

command     the flags; one contender alone, or all of them
comparison  the contenders as processes, in turns
contender   what they do: the plain loop, tiles, the engine
survey      what the device can do, and what the network asks of it
pictures    the pictures, found or drawn
figures     from seconds to a table; pure
"""
