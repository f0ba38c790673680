# Circuits whose structure needs no data: RAT-SPNs, a full factorisation, an HCLT over a given tree, mixtures of circuits.

"""
    rat_spn(; num_vars, depth, replicas, num_sums, num_inputs, num_cats, leaves = [Leaf(num_cats)], heads = 1, perturbation = 0.4,
            seed = 0) -> Circuit

The RAT-SPN (Peharz et al. 2019, algorithm 2) over a random region graph of `replicas` recursive cuts into halves, `depth` deep.
A region that is not cut has `num_inputs` factorised distributions: products of one input, categorical unless [`leaves`](@ref Leaf) says
otherwise, for each of its variables. Any
other region has `num_sums` sums, each with parameters of its own, over all products of its partitions, one for each pair of
units of the two parts; the whole has `heads` of them. Every parameter starts in proportion to
U(1 - perturbation, 1 + perturbation).
"""
function rat_spn(; num_vars::Integer, depth::Integer, replicas::Integer, num_sums::Integer, num_inputs::Integer,
                 num_cats::Integer, leaves::AbstractVector{Leaf}=[Leaf(num_cats)], heads::Integer=1,
                 perturbation::Real=0.4, seed::Integer=0)
    sizes = (num_vars=num_vars, depth=depth, replicas=replicas, num_sums=num_sums, num_inputs=num_inputs, num_cats=num_cats, heads=heads)
    check_positive(; sizes...)
    check_leaves(leaves, num_vars)
    start = Starter(seed, perturbation)
    check_random_graph(; sizes...)
    regions = random_region_graph(start.rng, num_vars, depth, replicas)
    counts = [r == 1 ? heads : isempty(region.partitions) ? num_inputs : num_sums for (r, region) in enumerate(regions)]
    size = rat_spn_size(regions, counts, num_inputs, num_cats)
    check_room(named(; sizes...), size...)
    b = Builder(num_vars, size...)
    inputs = add_region_inputs!(b, start, regions, num_inputs, leaves)
    units = Vector{UnitRange{Int}}(undef, length(regions))
    for r in sortperm([length(region.scope) for region in regions])  # parts before wholes
        leaf = isempty(regions[r].partitions)
        mixed = leaf ? add_factorised!(b, inputs[r]) : add_pairs!(b, regions[r].partitions, units)
        leaf && r > 1 && (units[r] = mixed; continue)
        for _ in 1:counts[r]
            add_sum!(b, mixed)
        end
        units[r] = last_units(b, counts[r])
        fill_in!(start, (weights(b, u) for u in units[r]))
    end
    return Circuit(b, units[1])
end

"Units, edges and entries of tables, at most, where region r has `counts[r]` units for others to use."
function rat_spn_size(regions, counts, num_inputs, categories)
    units, edges, entries = 0.0, 0.0, 0.0
    for (r, region) in enumerate(regions)
        scope, pairs = length(region.scope), sum(Float64[counts[i] * Float64(counts[j]) for (i, j) in region.partitions])
        if isempty(region.partitions)
            units += Float64(num_inputs) * (scope + 1)
            edges += Float64(num_inputs) * scope
            entries += Float64(num_inputs) * scope * categories
            pairs = r == 1 ? num_inputs : 0
        end
        (r == 1 || !isempty(region.partitions)) && (units += pairs + counts[r]; edges += pairs * (2.0 + counts[r]))
    end
    return units, edges, entries
end

"""
The inputs of each region that is not cut: for each variable of its scope, `count` of them. Those of one
variable share a table, because looking up one long row is faster than many short ones.
"""
function add_region_inputs!(b::Builder, start::Starter, regions, count, leaves)
    regions_of = [Int[] for _ in 1:b.num_vars]
    for r in eachindex(regions), i in (isempty(regions[r].partitions) ? regions[r].scope : Int[])
        push!(regions_of[i], r)
    end
    inputs = [UnitRange{Int}[] for _ in regions]
    for i in 1:b.num_vars
        units = add_leaves!(b, start, leaf_of(leaves, i), i, count * length(regions_of[i]))
        for (k, r) in enumerate(regions_of[i])
            push!(inputs[r], units[(k - 1) * count + 1:k * count])
        end
    end
    return inputs
end

"Products of the k-th inputs of all variables, for every k; of a single variable, its inputs themselves."
function add_factorised!(b::Builder, inputs)
    length(inputs) == 1 && return inputs[1]
    for k in eachindex(inputs[1])
        add_product!(b, [units[k] for units in inputs])
    end
    return last_units(b, length(inputs[1]))
end

"For every partition, the products of all pairs of its parts' units."
function add_pairs!(b::Builder, partitions, units)
    before = length(b.kind)
    for (left, right) in partitions, i in units[left], j in units[right]
        add_product!(b, (i, j))
    end
    return before + 1:length(b.kind)
end

"""
    fully_factorized(; num_vars, num_cats, heads = 1) -> Circuit

Independent variables: each head is a product of one categorical for each variable, uniform. One full-batch EM step of size 1
makes them the frequencies in the data.
"""
function fully_factorized(; num_vars::Integer, num_cats::Integer, heads::Integer=1)
    sizes = (num_vars=num_vars, num_cats=num_cats, heads=heads)
    check_positive(; sizes...)
    units, edges = (num_vars + 1.0) * heads, Float64(num_vars) * heads
    check_room(named(; sizes...), units, edges, edges * num_cats)
    b = Builder(num_vars, units, edges, edges * num_cats)
    inputs = map(1:num_vars) do i
        entries = length(b.leaf)
        units = add_table!(b, i, heads, num_cats)
        in_pieces(range -> fill!(view(b.leaf, range), 1f0 / num_cats), entries + 1:length(b.leaf))
        units
    end
    return Circuit(b, add_factorised!(b, inputs))
end

"""
    from_tree(parent; latents, categories, heads = 1, perturbation = 0.4, seed = 0) -> Circuit

The [`hclt`](@ref) over a tree that did not come from data: `parent[i]` is the parent of variable i, 0 for the one root. Throws an
`ArgumentError` where `parent` is no tree.
"""
function from_tree(parent::AbstractVector{<:Integer}; kwargs...)
    check_tree(parent)
    return hclt(parent; kwargs...)
end

function check_tree(parent)
    V = length(parent)
    count(iszero, parent) == 1 || throw(ArgumentError("parent: found $(count(iszero, parent)) roots, wanted 1"))
    in_tree = Vector{Bool}(iszero.(parent))
    for i in 1:V
        path, j = Int[], i
        while !in_tree[j]
            push!(path, j)
            0 <= parent[j] <= V ||
                throw(ArgumentError("parent: variable $(j - 1) has the parent $(parent[j] - 1), wanted 0..$(V - 1)"))
            length(path) <= V || throw(ArgumentError("parent: variable $(i - 1) is on or below a cycle"))
            j = parent[j]
        end
        in_tree[path] .= true
    end
end

"""
    mixture(circuits, weights = equal) -> Circuit

Head h is a sum over head h of each of the circuits, with their weights. The circuits look at the same variables and have as many
heads as one another; their units and parameters are copied. Throws an `ArgumentError` where circuits or weights do not fit.
"""
function mixture(circuits::AbstractVector{Circuit}, weights::AbstractVector{<:Real}=ones(length(circuits)))
    isempty(circuits) && throw(ArgumentError("mixture: found no circuits, wanted at least 1"))
    length(weights) == length(circuits) ||
        throw(ArgumentError("mixture: found $(length(weights)) weights for $(length(circuits)) circuits"))
    all(w -> 0 <= w < Inf, weights) && any(>(0), weights) ||
        throw(ArgumentError("mixture: found weights $(extrema(weights)), wanted finite numbers >= 0, not all 0"))
    V, H = circuits[1].num_vars, num_heads(circuits[1])
    for (t, c) in enumerate(circuits)
        c.num_vars == V && num_heads(c) == H ||
            throw(ArgumentError("mixture: circuit $(t - 1) has $(c.num_vars) variables and $(num_heads(c)) heads, the first $V and $H"))
    end
    b = room_for(circuits, "mixture of $(length(circuits)) circuits")
    heads = [append_circuit!(b, c) for c in circuits]
    shares = weights ./ maximum(weights)  # the sum of numbers near the largest would be infinite
    shares = Float32.(shares ./ sum(shares))
    return Circuit(b, [add_sum!(b, [own[h] for own in heads], shares) for h in 1:H],
                   sum(share * c.head_weight for (share, c) in zip(shares, circuits)))
end

"""
    side_by_side(circuits) -> Circuit

A circuit with the heads of all circuits, which look at the same variables, one after another; their units and parameters are
copied. Each circuit's share of the prior weights is that of the heads.
"""
function side_by_side(circuits::AbstractVector{Circuit})
    isempty(circuits) && throw(ArgumentError("side_by_side: found no circuits, wanted at least 1"))
    V = circuits[1].num_vars
    for (t, c) in enumerate(circuits)
        c.num_vars == V || throw(ArgumentError("side_by_side: circuit $(t - 1) has $(c.num_vars) variables, the first $V"))
    end
    b = room_for(circuits, "side_by_side of $(length(circuits)) circuits")
    heads, shares = reduce(vcat, [append_circuit!(b, c) for c in circuits]), [num_heads(c) * c.head_weight for c in circuits]
    return Circuit(b, heads, reduce(vcat, shares) ./ length(heads))
end

"A builder with room for copies of circuits, each `times` over, and for as many more units and edges; `what` asks for it."
function room_for(circuits, what; times=ones(length(circuits)), num_vars=circuits[1].num_vars, units=0.0, edges=0.0)
    units += sum(times .* num_units.(circuits))
    edges += sum(times .* num_edges.(circuits))
    entries = sum(n * length(c.leaf) for (n, c) in zip(times, circuits))
    check_room(what, units, edges, entries)
    return Builder(num_vars, units, edges, entries)
end

"Copies a circuit behind what is there, its variable i as variable `variables[i]`; returns where its heads are now."
function append_circuit!(b::Builder, c::Circuit, variables=1:c.num_vars)
    first_unit, first_edge, first_param = length(b.kind), length(b.child), length(b.leaf)
    for (all, own) in ((b.kind, c.kind), (b.categories, c.categories), (b.param_stride, c.param_stride), (b.success, c.success),
                       (b.weight, c.weight), (b.leaf, c.leaf))
        append_in_pieces!(all, own)
    end
    for array in (b.variable, b.param_start, b.child_start)
        resize!(array, length(array) + num_units(c))
    end
    resize!(b.child, length(b.weight))
    for u in 1:num_units(c)
        input = isinput(c.kind[u])
        b.variable[first_unit + u] = input ? variables[c.variable[u]] : 0
        b.param_start[first_unit + u] = input ? c.param_start[u] + first_param : 0
        b.child_start[first_unit + u + 1] = c.child_start[u + 1] + first_edge
        for e in edges(c, u)
            @inbounds b.child[first_edge + e] = child(c, u, e) + first_unit
        end
        pause(10 + 2 * length(edges(c, u)))
    end
    return c.heads .+ Int32(first_unit)
end

"Appends a long array, with pauses."
function append_in_pieces!(all, own)
    first_new = length(all)
    resize!(all, length(all) + length(own))
    in_pieces(range -> copyto!(all, first_new + first(range), own, first(range), length(range)), eachindex(own))
    return all
end

# What Python calls: positional, variables from 0.

rat_spn_circuit(num_vars, depth, replicas, num_sums, num_inputs, num_cats, heads, perturbation, seed, leaves=[Leaf(num_cats)]) =
    rat_spn(; num_vars=num_vars, depth=depth, replicas=replicas, num_sums=num_sums, num_inputs=num_inputs, num_cats=num_cats,
            leaves=leaves, heads=heads, perturbation=perturbation, seed=seed)

"`shape`, (height, width, channels), and `steps` are for a grid of regions; where they are empty, `depth` and `replicas` are for a random one."
einet_circuit(num_vars, shape, steps, depth, replicas, num_sums, num_cats, leaves, heads, perturbation, seed) =
    einet(; (isempty(shape) ? (num_vars=num_vars, depth=depth, replicas=replicas) : (shape=(shape...,), steps=(steps...,)))...,
          num_sums=num_sums, num_cats=num_cats, leaves=leaves, heads=heads, perturbation=perturbation, seed=seed)

factorized_circuit(num_vars, num_cats, heads) = fully_factorized(; num_vars=num_vars, num_cats=num_cats, heads=heads)

"`parent` counts from 0 and is -1 for the root."
tree_circuit(parent, latents, categories, heads, perturbation, seed, leaves=[Leaf(categories)]) =
    from_tree(parent .+ 1; latents=latents, categories=categories, leaves=leaves, heads=heads, perturbation=perturbation, seed=seed)

"A handle at a time: handles cross the boundary one by one."
mixture_circuit(weights, circuits...) = mixture(collect(Circuit, circuits), weights)
side_by_side_circuit(circuits...) = side_by_side(collect(Circuit, circuits))
