# Growing (Liu, Liu, Van den Broeck and Liang 2023, algorithm 1): units that the selected heads use much are doubled.

# Of a sum's weight for a child with two copies, this share goes to the copy that is not its own.
const OTHER_COPY = 0.2

# The noise multiplies a parameter by a number within so many standard deviations of 1, and no smaller than the least.
const NOISE_DEVIATIONS = 2
const LEAST_NOISE = 0.1

"The quantiles of a standard normal at (i - 1/2) / n, i = 1..n, cut off at `limit` deviations: its density integrated in small steps."
function normal_quantiles(n::Int, limit)
    quantiles, step, x, below = Vector{Float32}(undef, n), 1e-4, 0.0, 0.5
    for i in n ÷ 2 + 1:n
        while below < (i - 0.5) / n && x < limit
            below += step * exp(-(x + step / 2)^2 / 2) / sqrt(2 * pi)
            x += step
        end
        quantiles[i], quantiles[n + 1 - i] = x, -x
    end
    return quantiles
end

# A normal number for 12 random bits: growing draws one for each parameter, and logarithms would take most of its time.
const QUANTILES = normal_quantiles(4096, NOISE_DEVIATIONS)

"""
    grow(circuit, unit_flows, select; threshold, noise = 0.2, seed = 0) -> Circuit
    grow(circuit, X, head_of; select, threshold, noise = 0.2, seed = 0, weights = ones) -> Circuit

Algorithm 1: a new circuit with the heads of the old one and, for each head of `select` in turn, a new head that starts as its copy
and has half of its prior weight.
`unit_flows` are the units' flows over the samples whose heads are selected. G are the units below the selected heads whose
flow is at least `threshold`; with `X`, a threshold in (0, 1) is a fraction of the weight of the selected heads' samples. Children
before parents,

- an input in G gets a second copy;
- a product gets a second copy, of its children's second copies (their first, where there is no second), if a child has one;
- a sum in G gets a second copy; each copy is over all copies of the children.

Selected heads always get one. A sum's weight for a child with two copies is divided: 1 - d to the copy of its own rank, d = $OTHER_COPY
to the other. (The only copy of a sum is a first one.) Then every weight and every input's probability is multiplied by clamp(N(1, noise),
max(1 - $NOISE_DEVIATIONS noise, $LEAST_NOISE), 1 + $NOISE_DEVIATIONS noise), of a binomial those of success and failure, and scaled to sum to 1. A Poisson's rate,
a logistic's scale and a Gaussian's deviation are multiplied by such a number; locations move by so many scales as another differs from 1. With `noise = 0` each old
head keeps its distribution, and each new one has that of the head it comes from.

The copies of one group of units are neighbours, so that what was a dense block stays one.
"""
function grow(c::Circuit, unit_flows::AbstractVector{<:Real}, select; threshold::Real, noise::Real=0.2, seed::Integer=0)
    check_growth(c, select, threshold, noise)
    length(unit_flows) == num_units(c) ||
        throw(ArgumentError("the flows have $(length(unit_flows)) entries for $(num_units(c)) units"))
    selected = c.heads[select]
    doubled = reachable(c, selected, trues(num_edges(c))) .& (unit_flows .>= threshold)
    doubled[selected] .= true
    shares = copy(c.head_weight)
    shares[select] ./= 2
    grown = double_units(c, doubled, selected, vcat(shares, shares[select]))
    noise > 0 && perturb!(grown, noise, seed)
    return grown
end

function grow(c::Circuit, X::Data, head_of; select, threshold::Real, noise::Real=0.2, seed::Integer=0,
              weights=ones(Float32, num_samples(X)))
    check_growth(c, select, threshold, noise)
    length(head_of) == length(weights) ||
        throw(ArgumentError("heads has $(length(head_of)) entries for $(length(weights)) weights"))
    weights = [h in select ? w : zero(w) for (h, w) in zip(head_of, weights)]
    # Without a sample for the selected heads, nothing has flow.
    unit_flows = any(>(0), weights) ? flows(c, X, head_of; weights=weights)[1] : zeros(num_units(c))
    return grow(c, unit_flows, select; threshold=least_flow(threshold, sum(Float64, weights)), noise=noise, seed=seed)
end

least_flow(threshold, total) = 0 < threshold < 1 ? threshold * total : threshold

function check_growth(c::Circuit, select, threshold, noise)
    isempty(select) && throw(ArgumentError("select: found no head, wanted at least 1"))
    all(h -> 1 <= h <= num_heads(c), select) ||
        throw(ArgumentError("select: found $(extrema(select) .- 1), the circuit has heads 0..$(num_heads(c) - 1)"))
    allunique(select) || throw(ArgumentError("select: found a head twice, wanted each at most once"))
    threshold >= 0 || throw(ArgumentError("threshold = $threshold: want 0 or more"))
    0 <= noise <= 1e20 || throw(ArgumentError("noise = $noise: want 0 or more, at most 1e20"))
end

"""
The circuit with two copies of the inputs and sums that are `doubled`, and of the products that this concerns or that are
`selected`; the heads' first copies are its heads, and after them the second ones of `selected`. `shares` are the heads' prior weights.
"""
function double_units(c::Circuit, doubled, selected, shares)
    # Room for as much as there can be: the arrays are not moved as they grow, and what is not used costs nothing.
    b = Builder(c.num_vars, 2 * num_units(c), 4 * num_edges(c), 2 * length(c.leaf))
    first_copy, second_copy = zeros(Int32, num_units(c)), zeros(Int32, num_units(c))  # second: 0 where there is none
    group_of, _, groups = ordered_groups(c)
    for group in groups
        if group.kind == PRODUCT
            again = filter(u -> u in selected || any(v -> second_copy[v] > 0, children(c, u)), group.units)
        else
            again = filter(u -> doubled[u], group.units)
        end
        if isinput(group.kind)
            copies = copy_inputs!(b, c, [group.units; again])
            first_copy[group.units] = copies[1:length(group.units)]
            second_copy[again] = copies[length(group.units) + 1:end]
            continue
        end
        for u in group.units
            first_copy[u] = group.kind == PRODUCT ? add_product!(b, (first_copy[v] for v in children(c, u))) :
                                                    add_grown_sum!(b, c, u, first_copy, second_copy, group_of, OTHER_COPY)
        end
        for u in again
            second_copy[u] = group.kind == PRODUCT ?
                             add_product!(b, (second_copy[v] > 0 ? second_copy[v] : first_copy[v] for v in children(c, u))) :
                             add_grown_sum!(b, c, u, first_copy, second_copy, group_of, 1 - OTHER_COPY)
        end
    end
    return Circuit(b, vcat(first_copy[c.heads], second_copy[selected]), shares)
end

"""
Sum `u` over all copies of its children, giving `share` of the weight to second ones. In the order of the groups' units: the
first copies of the children in one group, then their second ones.
"""
function add_grown_sum!(b::Builder, c::Circuit, u, first_copy, second_copy, group_of, share)
    at, final = first(edges(c, u)), last(edges(c, u))
    while at <= final
        group, stop = group_of[child(c, u, at)], at
        while stop < final && group_of[child(c, u, stop + 1)] == group
            stop += 1
        end
        for e in at:stop
            v = child(c, u, e)
            push!(b.child, first_copy[v])
            push!(b.weight, second_copy[v] > 0 ? (1 - share) * c.weight[e] : c.weight[e])
        end
        for e in at:stop
            v = child(c, u, e)
            second_copy[v] > 0 || continue
            push!(b.child, second_copy[v])
            push!(b.weight, share * c.weight[e])
        end
        at = stop + 1
    end
    pause(10 * length(edges(c, u)))
    return add_unit!(b, SUM)
end

"Multiplies all parameters by noise. A unit's noise depends on the seed and its place in the circuit alone, not on the threads."
function perturb!(c::Circuit, noise::Real, seed::Integer)
    first = 1
    while first <= num_units(c)
        last, steps = first, 0  # as many units as take some hundredths of a second
        while last < num_units(c) && steps < 2^22
            last += 1
            steps += 10 + length(edges(c, last)) + (c.kind[last] in (BINOMIAL, LOGISTIC) ? 50 : 1) * c.categories[last]
        end
        Threads.@threads for u in first:last
            perturb!(c, u, noise, seed)
        end
        first = last + 1
        pause()
    end
end

function perturb!(c::Circuit, u::Integer, noise::Real, seed::Integer)
    rng = SplitMix(seed, u)
    if c.kind[u] == SUM
        perturb!(rng, view(c.weight, edges(c, u)), noise)
    elseif c.kind[u] == CATEGORICAL
        perturb!(rng, probabilities(c, u), noise)
    elseif c.kind[u] == BINOMIAL
        outcome = Float32[1 - c.success[u], c.success[u]]
        perturb!(rng, outcome, noise)
        c.success[u] = outcome[2]
        fill_binomial!(probabilities(c, u), outcome[2])
    elseif c.kind[u] == LOGISTIC
        location, scale = (c.leaf[place] for place in logistic_places(c, u))
        bits = next64!(rng)
        set_logistic!(c, u, location + scale * (factor(bits, noise) - 1), scale * factor(bits >> 16, noise))
    elseif c.kind[u] == POISSON
        set_entries!(c, u, (max(entry(c, u, 0) * factor(next64!(rng), noise), LEAST_RATE),))
    elseif c.kind[u] == GAUSSIAN
        bits, mean, deviation = next64!(rng), entry(c, u, 0), entry(c, u, 1)
        set_entries!(c, u, (mean + deviation * (factor(bits, noise) - 1), max(deviation * factor(bits >> 16, noise), entry(c, u, 2))))
    end
end

"clamp(N(1, noise)), by the last of the random `bits`."
function factor(bits::UInt64, noise::Real)
    low, high = noise_limits(noise)
    return clamp(1f0 + Float32(noise) * QUANTILES[bits & 0xfff + 1], low, high)
end

noise_limits(noise) = Float32(max(1 - NOISE_DEVIATIONS * noise, LEAST_NOISE)), Float32(1 + NOISE_DEVIATIONS * noise)

function perturb!(rng::SplitMix, weights::AbstractVector{Float32}, noise::Real)
    (low, high), n = noise_limits(noise), length(weights)
    deviation, total, bits = Float32(noise), 0.0, UInt64(0)
    @inbounds for i in 1:n
        bits = i % 4 == 1 ? next64!(rng) : bits >> 16
        total += weights[i] *= clamp(1f0 + deviation * QUANTILES[bits & 0xfff + 1], low, high)
    end
    scale = Float32(1 / total)
    @inbounds for i in 1:n
        weights[i] *= scale
    end
end
