# The model with offsets p(x) = sum_h p(h) prod_i e_i(h_i), written out as one circuit.

"""
    offset_circuit(prior, circuits, steps, join, shifts, variables) -> Circuit

The prior p(h) over positions, and below it, for position i and each state h of it, the emission

    e_i(h) = sum_j join[h, j] prod_c sum_d shifts[c][h, d] p_jc(x_ic - steps[c] (d - 1) mod categories),

where a join j is head r of shape k: shape 1's heads first, then shape 2's and so on. `circuits` is a matrix (channels, shapes) of
channel circuits, those of one shape with as many heads; `variables`, a matrix (variables of a patch, positions), holds 1, 2, ... each
once, and channel c's are the c-th of every `length(steps)` of them. As many offsets as a channel has, so many times its step are its
categories.

For each position there is a copy of each channel circuit for each offset that some state has, its inputs' tables turned round by the
offset; then, for each state, sums over a channel's offsets (where it has more than one), products over channels (likewise), and the
sum over joins; no edge has weight 0. Last comes the prior, whose inputs are sums over the states. Throws an `ArgumentError` where the
parts do not fit together.
"""
function offset_circuit(prior::Circuit, circuits::AbstractMatrix{Circuit}, steps, join, shifts, variables)
    check_emissions(circuits, steps, join, shifts)
    check_offset_parts(prior, circuits, join, variables)
    C, P = length(steps), prior.num_vars
    offsets = [findall(d -> any(>(0), view(shifts[c], :, d)), axes(shifts[c], 2)) for c in 1:C]  # that some state has
    times = [P * length(offsets[c]) for c in 1:C, _ in axes(circuits, 2)]
    units, edges = emission_size(join, shifts)
    b = room_for(vec(circuits), "offset_circuit of $P positions"; times=vec(times), num_vars=length(variables),
                 units=P * units + num_units(prior), edges=P * edges + num_edges(prior) + length(prior.leaf))
    emissions = [add_emissions!(b, circuits, steps, join, shifts, offsets, view(variables, :, i)) for i in 1:P]
    return Circuit(b, append_prior!(b, prior, emissions))
end

"The units that are the emissions of each state at one position."
function add_emissions!(b::Builder, circuits, steps, join, shifts, offsets, variables)
    C = length(steps)
    heads = map(1:C) do c  # (offsets, joins)
        own = view(variables, c:C:length(variables))
        permutedims(reduce(hcat, [reduce(vcat, [append_turned!(b, circuit, own, steps[c] * (d - 1)) for circuit in view(circuits, c, :)])
                                  for d in offsets[c]]))
    end
    return map(axes(join, 1)) do h
        joins = findall(>(0), view(join, h, :))
        products = map(joins) do j
            factors = Int[size(shifts[c], 2) == 1 ? heads[c][1, j] :
                          add_possible!(b, view(heads[c], :, j), view(shifts[c], h, offsets[c])) for c in 1:C]
            C == 1 ? factors[1] : add_product!(b, factors)
        end
        add_sum!(b, products, join[h, joins])
    end
end

"Copies a circuit ([`append_circuit!`](@ref)), each of its variables `offset` higher, modulo its categories; returns its heads."
function append_turned!(b::Builder, c::Circuit, variables, offset)
    first_unit = length(b.kind)
    heads = append_circuit!(b, c, variables)
    for u in 1:num_units(c)
        if isinput(c.kind[u])
            circshift!(probabilities(b, first_unit + u), probabilities(c, u), offset)
            pause(2 * Int(c.categories[u]))
        end
    end
    return heads
end

"Units and edges of the emissions of one position, those of the circuits apart."
function emission_size(join, shifts)
    units, edges = 0.0, 0.0
    for h in axes(join, 1)
        joins = count(>(0), view(join, h, :))
        units += 1 + joins * (length(shifts) > 1)
        edges += joins * (1 + length(shifts) * (length(shifts) > 1))
        for shift in shifts
            size(shift, 2) == 1 && continue
            units += joins
            edges += Float64(joins) * count(>(0), view(shift, h, :))
        end
    end
    return units, edges
end

function check_emissions(circuits, steps, join, shifts)
    refuse(reason) = throw(ArgumentError("offset_circuit: $reason"))
    S, C = size(join, 1), length(steps)
    isempty(circuits) && refuse("found no circuits, wanted at least 1")
    size(circuits, 1) == length(shifts) == C || refuse("found $(size(circuits, 1)) channels' circuits and $(length(shifts)) channels' " *
                                                       "shifts for $C steps")
    for k in axes(circuits, 2), c in 1:C
        circuit, name = circuits[c, k], "shape $(k - 1), channel $(c - 1)"
        circuit.num_vars == circuits[1, 1].num_vars || refuse("$name has $(circuit.num_vars) variables, the first $(circuits[1, 1].num_vars)")
        num_heads(circuit) == num_heads(circuits[1, k]) ||
            refuse("$name has $(num_heads(circuit)) heads, channel 0 of the shape $(num_heads(circuits[1, k]))")
        any(in((BINOMIAL, LOGISTIC, POISSON, GAUSSIAN)), circuit.kind) && refuse("$name has inputs that are not categorical: they cannot be turned")
        categories = size(shifts[c], 2) * steps[c]
        for (v, found) in enumerate(category_limits(circuit))
            found in (0, categories) || refuse("$name has $found categories in variable $(v - 1), wanted $categories: " *
                                               "$(size(shifts[c], 2)) offsets times $(steps[c])")
        end
    end
    joins = sum(Int[num_heads(circuits[1, k]) for k in axes(circuits, 2)])
    size(join, 2) == joins || refuse("found $(size(join, 2)) joins, wanted $joins: the shapes' heads")
    for (c, shift) in enumerate(shifts)
        size(shift, 1) == S || refuse("found offsets of $(size(shift, 1)) states in channel $(c - 1), wanted $S")
    end
    for h in 1:S, (what, table) in (("join", join), (("offset of channel $(c - 1)", shift) for (c, shift) in enumerate(shifts))...)
        any(>(0), view(table, h, :)) || refuse("found no $what of state $(h - 1) with a probability above 0")
    end
end

function check_offset_parts(prior, circuits, join, variables)
    check_variables("offset_circuit", prior, variables)
    size(variables, 1) == size(circuits, 1) * circuits[1, 1].num_vars ||
        throw(ArgumentError("offset_circuit: found $(size(variables, 1)) variables of a patch, wanted $(circuits[1, 1].num_vars) of " *
                            "$(size(circuits, 1)) channels"))
    for (i, categories) in enumerate(category_limits(prior))
        categories == size(join, 1) ||
            throw(ArgumentError("offset_circuit: the prior has $categories categories at position $(i - 1), wanted $(size(join, 1)): " *
                                "the states"))
    end
end

"`variables` counts from 0; then come the shifts of each channel, then the circuits, shape after shape and in it channel after channel."
function offset_circuit_of(prior, variables, steps, join, parts...)
    C = length(steps)
    circuits = reshape(collect(Circuit, parts[C + 1:end]), C, :)
    return offset_circuit(prior, circuits, steps, join, collect(parts[1:C]), variables .+ 1)
end
