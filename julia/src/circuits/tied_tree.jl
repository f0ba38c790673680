# Markov trees over the positions of a grid whose transitions are tied, by direction or by the kind of their line: many states, few
# parameters.

"""
    tied_tree(parent, class, root, transitions) -> (circuit, ties)

The Markov tree over `parent` (see [`hclt`](@ref)), each of whose variables has S values: the root is b with probability `root[b]`, and
variable i, whose parent is a, with `transitions[b, a, class[i]]`. `ties`: of each edge, the number of the transition whose
probability it has ([`Ties`](@ref)); 0 for the root's and for products'.
"""
function tied_tree(parent::AbstractVector{<:Integer}, class::AbstractVector{<:Integer}, root::AbstractVector{<:Real},
                   transitions::AbstractArray{<:Real,3})
    V, S = length(parent), length(root)
    check_hclt(V, S, S, 1)
    size(transitions)[1:2] == (S, S) || throw(ArgumentError("transitions: found $(size(transitions)), wanted tables of $S states"))
    subtrees = [Int[] for _ in 1:V]
    for i in 1:V
        if parent[i] != 0
            push!(subtrees[parent[i]], i)
            1 <= class[i] <= size(transitions, 3) || throw(ArgumentError("class: found $(class[i]), wanted 1..$(size(transitions, 3))"))
        end
    end
    top = findfirst(iszero, parent)
    order = breadth_first(subtrees, top)
    length(order) == V || throw(ArgumentError("parent: found no tree"))
    b, of_sums = Builder(V, hclt_size(V, S, S, 1)...), Int32[]
    messages = Vector{UnitRange{Int}}(undef, V)
    for i in reverse(order)
        states = add_indicators!(b, i, 0:S - 1, S)
        if !isempty(subtrees[i])
            for k in 1:S
                add_product!(b, [states[k]; [messages[j][k] for j in subtrees[i]]])
            end
            states = last_units(b, S)
        end
        for a in 1:(i == top ? 1 : S)
            add_sum!(b, states, i == top ? root : view(transitions, :, a, class[i]))
            append!(of_sums, i == top ? fill(0, S) : ((class[i] - 1) * S + a - 1) * S .+ (1:S))
            pause(10 + 4 * S)
        end
        messages[i] = last_units(b, i == top ? 1 : S)
    end
    circuit = Circuit(b, messages[top])
    return circuit, ties_of(circuit, of_sums)
end

"The ties of all edges, from those of the sums' edges in their order."
function ties_of(circuit::Circuit, of_sums)
    ties, place = zeros(Int32, length(circuit.weight)), 0
    for u in 1:num_units(circuit)
        circuit.kind[u] == SUM || continue
        own = edges(circuit, u)
        ties[own] = of_sums[place + 1:place + length(own)]
        place += length(own)
    end
    return ties
end

"""
    tied_lines(lines, root, next, starts, transitions) -> (circuit, ties)

Variables of S values in lines, each of which has one of G kinds: Markov chains within lines, whose kinds are a Markov chain from line to
line. `lines`, `(length, number of lines)`: the variables of each in order. The first line is of kind k with probability `root[k]`, the
following one of kind l with `next[l, k]`. In a line of kind k, the first variable has value b with `starts[b, k]`, and the one after a
value a has b with `transitions[b, a, k]`. All lines share these; `ties`: as for [`tied_tree`](@ref), 0 for `root`.
"""
function tied_lines(lines::AbstractMatrix{<:Integer}, root::AbstractVector{<:Real}, next::AbstractMatrix{<:Real},
                    starts::AbstractMatrix{<:Real}, transitions::AbstractArray{<:Real,3})
    (L, R), (S, G) = size(lines), size(starts)
    sort(vec(lines)) == 1:L * R || throw(ArgumentError("lines: wanted each of the variables 1..$(L * R) once"))
    length(root) == G && size(next) == (G, G) && size(transitions) == (S, S, G) ||
        throw(ArgumentError("root, next, transitions: found $(length(root)), $(size(next)), $(size(transitions)), " *
                            "wanted tables of $G kinds and $S values"))
    size_of = lines_size(L, R, S, G)
    check_room(named(; variables=L * R, values=S, kinds=G), size_of...)
    b, of_sums = Builder(L * R, size_of...), Int32[]
    first_start, first_next = S^2 * G, S^2 * G + S * G  # transitions have the first numbers
    below = 1:0  # of the following lines, for each kind of this one
    for r in R:-1:1
        messages = 1:0  # of the following variables, for each kind, and within it each value of this one
        for i in L:-1:1
            states = add_indicators!(b, lines[i, r], 0:S - 1, S)
            values = [states for _ in 1:G]
            if i < L
                for k in 1:G, a in 1:S
                    add_product!(b, [states[a], messages[(k - 1) * S + a]])
                end
                values = [last_units(b, S * G)[(k - 1) * S .+ (1:S)] for k in 1:G]
            end
            for k in 1:G, a in 1:(i == 1 ? 1 : S)
                add_sum!(b, values[k], i == 1 ? view(starts, :, k) : view(transitions, :, a, k))
                append!(of_sums, (i == 1 ? first_start + (k - 1) * S : ((k - 1) * S + a - 1) * S) .+ (1:S))
                pause(10 + 4 * S)
            end
            messages = last_units(b, i == 1 ? G : S * G)
        end
        if r < R
            for k in 1:G
                add_product!(b, [messages[k], below[k]])
            end
            messages = last_units(b, G)
        end
        for k in 1:(r == 1 ? 1 : G)
            add_sum!(b, messages, r == 1 ? root : view(next, :, k))
            append!(of_sums, r == 1 ? fill(0, G) : first_next + (k - 1) * G .+ (1:G))
        end
        below = last_units(b, r == 1 ? 1 : G)
    end
    circuit = Circuit(b, below)
    return circuit, ties_of(circuit, of_sums)
end

"As for [`hclt_size`](@ref)."
function lines_size(L, R, S, G)
    variables, R, S, G = Float64(L) * R, Float64(R), Float64(S), Float64(G)
    return variables * (S + 2 * S * G) + R * 2 * G + 1, variables * (S^2 + 2 * S) * G + R * (G^2 + 2 * G), 0.0
end
