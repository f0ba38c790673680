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
        kind in (CATEGORICAL, BINOMIAL, LOGISTIC, POISSON, GAUSSIAN) || throw(ArgumentError("leaves: kind $kind is not one that starts at random"))
        isfinite(centre) && 0 <= spread < Inf || throw(ArgumentError("leaves: found centre $centre and spread $spread, wanted finite numbers"))
        return new(kind, categories, centre, spread)
    end
end

Leaf(categories::Integer) = Leaf(CATEGORICAL, categories)

"Throws an `ArgumentError` unless these are the leaves of all variables, one for all of them or one for each, with categories."
function check_leaves(leaves::AbstractVector{Leaf}, num_vars)
    length(leaves) in (1, num_vars) || throw(ArgumentError("leaves: found $(length(leaves)) for $num_vars variables"))
    all(leaf -> leaf.categories >= 1 || !has_table(leaf.kind), leaves) || throw(ArgumentError("leaves: found no categories, wanted at least 1"))
end

leaf_of(leaves::AbstractVector{Leaf}, i) = leaves[length(leaves) == 1 ? 1 : i]

num_entries(leaf::Leaf) = num_entries(leaf.kind, leaf.categories)

"""
    add_leaves!(builder, start, leaf, variable, count, seen = nothing) -> range of units

`count` inputs of a variable that start at random, or at what was `seen` with each of `count` hidden states: see [`seen_values`](@ref).
"""
function add_leaves!(b::Builder, start::Starter, leaf::Leaf, variable, count::Int, seen=nothing)
    leaf.kind == BINOMIAL && return add_binomials!(b, variable, leaf.categories - 1, start_success(start, leaf, count, seen))
    units = add_table!(b, variable, count, leaf.categories; kind=leaf.kind)
    if leaf.kind == CATEGORICAL || leaf.kind == LOGISTIC && seen !== nothing
        fill_in!(start, (probabilities(b, u) for u in units), seen)
    end
    leaf.kind == CATEGORICAL || Base.invokelatest(start_leaves!, b, start, leaf, units, seen)  # compiled for those alone
    return units
end

function start_leaves!(b::Builder, start::Starter, leaf::Leaf, units, seen)
    count = length(units)
    for (k, u) in enumerate(units)
        location, deviation = random_start(start, leaf, k, count)
        if leaf.kind == LOGISTIC
            start_logistic!(b, u, leaf, location, deviation, seen !== nothing)
        else
            seen === nothing || ((location, deviation) = of_moments(leaf, view(seen, :, k)))
            start_number!(b, u, leaf, location, deviation)
        end
        pause(100 + 100 * leaf.categories)
    end
    return units
end

"Probabilities of success, around a half, or as the states' values, (categories, states), and `ADDED_SAMPLES` of a half have them."
start_success(start::Starter, leaf::Leaf, count::Int, ::Nothing) =
    Float32[0.5 + start.perturbation * (uniform!(start.rng) - 0.5) for _ in 1:count]

function start_success(::Starter, leaf::Leaf, count::Int, seen::Matrix)
    successes, trials = vec(sum((0:leaf.categories - 1) .* seen, dims=1)), (leaf.categories - 1) .* vec(sum(seen, dims=1))
    added = ADDED_SAMPLES * max(leaf.categories - 1, 1)
    return Float32.((successes .+ added / 2) ./ (trials .+ added))
end

"The k-th of `count` locations that lie evenly, as far as the variable's values do, but for a perturbation; and a deviation."
function random_start(start::Starter, leaf::Leaf, k::Int, count::Int)
    place = (k - 0.5 + start.perturbation * (uniform!(start.rng) - 0.5)) / count
    return leaf.centre + sqrt(3) * leaf.spread * (2 * place - 1), leaf.spread / sqrt(count)
end

"A logistic that fits its table as it is filled in, or else has this location and deviation."
function start_logistic!(b::Builder, u, leaf::Leaf, location, deviation, filled::Bool)
    location, scale = clamp(location, 0, leaf.categories - 1), scale_of_deviation(deviation)
    filled && ((location, scale) = fit_logistic(Float64.(probabilities(b, u)), location, scale))
    set_logistic!(b, u, location, scale)
end

function start_number!(b::Builder, u, leaf::Leaf, location, deviation)
    leaf.kind == POISSON && return set_entries!(b, u, (max(location, 0.1 * leaf.centre, LEAST_RATE), 0))
    least = LEAST_DEVIATION * (leaf.spread > 0 ? leaf.spread : 1.0)
    set_entries!(b, u, (location, max(deviation, Float64(Float32(least))), least, 0))
end

"The mean and the deviation of a state's values, (count, sum, sum of squares) about the centre, and of `ADDED_SAMPLES` that are like all."
function of_moments(leaf::Leaf, seen)
    total = seen[1] + ADDED_SAMPLES
    mean, square = seen[2] / total, (seen[3] + ADDED_SAMPLES * leaf.spread^2) / total
    return leaf.centre + mean, sqrt(max(square - mean^2, 0.0))
end

# What Python calls: what `Leaf` takes, an entry for each variable.

const LEAF_KINDS = Dict("categorical" => CATEGORICAL, "binomial" => BINOMIAL, "logistic" => LOGISTIC, "poisson" => POISSON, "gaussian" => GAUSSIAN)

"`kinds`: their names, with spaces between."
leaves_of(kinds, categories, centres, spreads) =
    map((kind, rest...) -> Leaf(LEAF_KINDS[kind], rest...), split(kinds), categories, centres, spreads)
