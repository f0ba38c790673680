# What the inputs of each variable are, where a structure is made: their kind, and where they start.

"""
    Leaf(categories)
    Leaf(kind, categories, centre, spread)

What inputs a variable has: `CATEGORICAL`, unless another kind is given. Inputs that have a location start around `centre`, as far from it as
`spread` says: about the mean of the variable's values and their standard deviation.
"""
struct Leaf
    kind::UInt8
    categories::Int
    centre::Float64
    spread::Float64

    function Leaf(kind, categories, centre=(categories - 1) / 2, spread=abs(categories - 1) / sqrt(12))
        kind in (CATEGORICAL, LOGISTIC) || throw(ArgumentError("leaves: kind $kind is not one that starts at random"))
        isfinite(centre) && 0 <= spread < Inf || throw(ArgumentError("leaves: found centre $centre and spread $spread, wanted finite numbers"))
        return new(kind, categories, centre, spread)
    end
end

Leaf(categories::Integer) = Leaf(CATEGORICAL, categories)

"Throws an `ArgumentError` unless these are the leaves of all variables, one for all of them or one for each, with categories."
function check_leaves(leaves::AbstractVector{Leaf}, num_vars)
    length(leaves) in (1, num_vars) || throw(ArgumentError("leaves: found $(length(leaves)) for $num_vars variables"))
    all(leaf -> leaf.categories >= 1, leaves) || throw(ArgumentError("leaves: found no categories, wanted at least 1"))
end

leaf_of(leaves::AbstractVector{Leaf}, i) = leaves[length(leaves) == 1 ? 1 : i]

num_entries(leaf::Leaf) = num_entries(leaf.kind, leaf.categories)

"""
    add_leaves!(builder, start, leaf, variable, count, seen = nothing) -> range of units

`count` inputs of a variable that start at random, or at what was `seen` with each of `count` hidden states: see [`value_counts`](@ref).
"""
function add_leaves!(b::Builder, start::Starter, leaf::Leaf, variable, count::Int, seen=nothing)
    units = add_table!(b, variable, count, leaf.categories; kind=leaf.kind)
    if leaf.kind == CATEGORICAL || seen !== nothing
        fill_in!(start, (probabilities(b, u) for u in units), seen)
    end
    leaf.kind == CATEGORICAL && return units
    for (k, u) in enumerate(units)
        location, scale = random_start(start, leaf, k, count)
        if seen !== nothing
            location, scale = fit_logistic(Float64.(probabilities(b, u)), location, scale)
        end
        set_logistic!(b, u, location, scale)
        pause(100 * leaf.categories)
    end
    return units
end

"A location and a scale for the k-th of `count` inputs: the locations spread evenly, as far as the values do, but for a perturbation."
function random_start(start::Starter, leaf::Leaf, k::Int, count::Int)
    place = (k - 0.5 + start.perturbation * (uniform!(start.rng) - 0.5)) / count
    location = leaf.centre + sqrt(3) * leaf.spread * (2 * place - 1)
    return clamp(location, 0, leaf.categories - 1), scale_of_deviation(leaf.spread / sqrt(count))
end

# What Python calls: what `Leaf` takes, an entry for each variable.

const LEAF_KINDS = Dict("categorical" => CATEGORICAL, "logistic" => LOGISTIC)

"`kinds`: their names, with spaces between."
leaves_of(kinds, categories, centres, spreads) =
    map((kind, rest...) -> Leaf(LEAF_KINDS[kind], rest...), split(kinds), categories, centres, spreads)
