# Work that several processes share.

"""
    Share(number, of)

What a process takes of work that `of` processes share: part `number`, from 1.
"""
struct Share
    number::Int
    of::Int

    function Share(number::Integer, of::Integer)
        1 <= number <= of || throw(ArgumentError("share: found $number of $of, wanted 1..$of"))
        return new(number, of)
    end
end

const ALL = Share(1, 1)

"The share's part of a range: all parts, in order, are the range, and differ in length by 1 at most."
own(range::UnitRange, share::Share) =
    first(range) + length(range) * (share.number - 1) ÷ share.of:first(range) + length(range) * share.number ÷ share.of - 1
